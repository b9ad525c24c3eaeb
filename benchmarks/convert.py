"""A checkpoint in transformers' GPT-2 form, written in the formats of the peers.

Each function of `FORMS` (by the peer's module) takes the checkpoint and gives the forms by name
with what writes them. The weights stay the same numbers; int8 forms are each peer's own rounding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

Writer = Callable[[Path], object]


def ctranslate2_forms(checkpoint: Path) -> dict[str, Writer]:
    def write(target: Path, precision: str) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(checkpoint)).convert(str(target), quantization=precision)

    return {
        "ctranslate2-fp32": lambda to: write(to, "float32"),
        "ctranslate2-int8": lambda to: write(to, "int8"),
    }


def optimum_forms(checkpoint: Path) -> dict[str, Writer]:
    return {
        "optimum-fp32": lambda to: write_optimum(checkpoint, to),
        "optimum-int8": lambda to: quantise_optimum(to.with_name("optimum-fp32"), to),
    }


def write_optimum(checkpoint: Path, target: Path) -> None:
    from optimum.onnxruntime import ORTModelForCausalLM

    model: Any = ORTModelForCausalLM.from_pretrained(str(checkpoint), export=True)
    model.save_pretrained(str(target))


def quantise_optimum(source: Path, target: Path) -> None:
    """As optimum's own quantizer does: dynamic, a scale for each column of a weight."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    settings: Any = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    quantizer: Any = ORTQuantizer.from_pretrained(str(source))
    quantizer.quantize(save_dir=str(target), quantization_config=settings)
    (target / "model_quantized.onnx").replace(target / "model.onnx")


def llama_cpp_forms(checkpoint: Path) -> dict[str, Writer]:
    return {
        "llama-fp32": lambda to: write_gguf(checkpoint, to, "F32"),
        "llama-q8": lambda to: write_gguf(checkpoint, to, "Q8_0"),
    }


GGUF_NAMES: Final = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`h.0.attn.c_attn.weight` -> `blk.0.attn_qkv.weight`."""
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    stem, _, kind = name.rpartition(".")
    if stem.startswith("h."):
        _, layer, inner = stem.split(".", 2)
        return f"blk.{layer}.{GGUF_NAMES[inner]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def write_gguf(checkpoint: Path, target: Path, kind: str) -> None:
    """model.gguf without a vocabulary: ids go in and out. Matrices are stored (out, in)."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    target.mkdir(parents=True)
    writer = gguf.GGUFWriter(str(target / "model.gguf"), "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        short = name.removeprefix("transformer.")
        if short == "lm_head.weight":  # tied
            continue
        value = tensor.astype(np.float32)
        if short.startswith("h.") and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        if value.ndim == 2 and short != "wpe.weight" and kind != "F32":
            packed = gguf.quants.quantize(value, quantised)
            writer.add_tensor(gguf_name(short), packed, raw_dtype=quantised)
        else:
            writer.add_tensor(gguf_name(short), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def genai_forms(checkpoint: Path) -> dict[str, Writer]:
    return {"genai-fp32": lambda to: write_genai(checkpoint, to)}


def write_genai(checkpoint: Path, target: Path) -> None:
    """optimum's graph with a description that onnxruntime-genai reads.

    Its model builder has no GPT-2, and its own "gpt2" type wants keys and values in one tensor; but
    any decoder with position ids and a growing cache runs as the type of a Llama.
    """
    source = target.with_name("optimum-fp32")
    target.mkdir(parents=True)
    shutil.copyfile(source / "model.onnx", target / "model.onnx")
    shutil.copyfile(checkpoint / "tokenizer.json", target / "tokenizer.json")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    heads, width = config["n_head"], config["n_embd"]
    decoder = {
        "filename": "model.onnx", "head_size": width // heads, "hidden_size": width,
        "num_attention_heads": heads, "num_key_value_heads": heads,
        "num_hidden_layers": config["n_layer"],
        "session_options": {"intra_op_num_threads": 2},
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask",
            "position_ids": "position_ids", "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }  # fmt: skip
    end = config["vocab_size"] - 1  # an id that the model does not choose: answers are not ended
    model = {
        "type": "llama", "vocab_size": config["vocab_size"], "bos_token_id": 0,
        "eos_token_id": end, "pad_token_id": end, "context_length": config["n_positions"],
        "decoder": decoder,
    }  # fmt: skip
    search = {"do_sample": False, "num_beams": 1, "past_present_share_buffer": False,
              "max_length": config["n_positions"]}  # fmt: skip
    text = json.dumps({"model": model, "search": search}, indent=2)
    (target / "genai_config.json").write_text(text, encoding="utf-8")


FORMS: Final[dict[str, Callable[[Path], dict[str, Writer]]]] = {
    "ctranslate2": ctranslate2_forms,
    "optimum": optimum_forms,
    "llama_cpp": llama_cpp_forms,
    "onnxruntime_genai": genai_forms,
}
