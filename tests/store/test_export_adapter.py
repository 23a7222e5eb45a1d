import json

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from landscape.config import RunConfig
from landscape.errors import StoreError
from landscape.store import Run, SnapshotLayout, Store, export_adapter
from landscape.store.export import saved_name

SIZES = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=16,
    attention_bias=True,
)
TOKENS = torch.arange(12).view(2, 6)
VARIANTS = {
    "lora": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "rslora": LoraConfig(r=4, use_rslora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=2, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
    "modules-to-save": LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "embedding": LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
    "lora-bias": LoraConfig(r=2, lora_bias=True, target_modules=["o_proj"], task_type="CAUSAL_LM"),
    "base-biases": LoraConfig(r=2, bias="lora_only", target_modules=["k_proj"], task_type="CAUSAL_LM"),
    "adalora": AdaLoraConfig(
        init_r=3, target_r=2, tinit=1, tfinal=1, total_step=10, target_modules="all-linear", task_type="CAUSAL_LM"
    ),
}


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(SIZES).eval()


def adapted(variant: str) -> PeftModel:
    """Every trained parameter away from its initial value, so that nothing is equal by being zero."""
    model = get_peft_model(base_model(), VARIANTS[variant]).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def capture(store: Store, model: PeftModel, method: str = "lora", adapter: str | None = None) -> Run:
    run = store.add(RunConfig.parse({"alpha": 16, "method": method, "adapter": adapter}), method, {})
    model.peft_config["default"].save_pretrained(run.path)
    parameters = trained(model)
    with run.begin_attempt() as attempt:
        writer = attempt.snapshot_writer("params", SnapshotLayout.from_tensors(parameters))
        writer.put(7, parameters)
    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_adapter_gives_the_same_logits_bit_for_bit(store, tmp_path, variant):
    model = adapted(variant)
    folder = export_adapter(capture(store, model), 7, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base_model(), folder).eval()
    with torch.no_grad():
        expected, found = model(input_ids=TOKENS).logits, loaded(input_ids=TOKENS).logits
        assert not torch.equal(expected, base_model()(input_ids=TOKENS).logits)
    assert torch.equal(found, expected)


# With adapted embeddings PEFT adds the frozen ones to what it saves; a snapshot has what is trained.
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "embedding"])
@pytest.mark.filterwarnings("ignore:.*invalid shape.*ZeRO-3")  # PEFT's false alarm about lora_B.bias
def test_names_are_those_of_peft(variant):
    model = adapted(variant)
    has_biases = VARIANTS[variant].bias != "none"
    assert {saved_name(name, has_biases) for name in trained(model)} == set(get_peft_model_state_dict(model))


@pytest.mark.parametrize(
    "name", ["model.q_proj.weight", "base_model.model.q_proj.lora_A.other.weight", "base_model.model.q_proj.bias"]
)
def test_parameters_that_peft_would_not_load_are_refused(name):
    with pytest.raises(StoreError, match="is no parameter of a PEFT adapter called 'default'"):
        saved_name(name)


def test_a_step_that_was_not_captured_names_the_nearest(store, tmp_path):
    run = capture(store, adapted("rslora"))
    with pytest.raises(StoreError, match="no snapshot of step 8; the nearest is 7"):
        export_adapter(run, 8, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("method", "adapter", "name"), [("full", None, "full"), ("sam", "full", "sam-full")])
def test_full_fine_tuning_has_no_adapter(store, tmp_path, method, adapter, name):
    run = capture(store, adapted("rslora"), method, adapter)
    with pytest.raises(StoreError, match=f"'{name}' trains the base weights, there is no adapter to export"):
        export_adapter(run, 7, tmp_path / "adapter")


def test_rewritten_base_weights_are_refused(store, tmp_path):
    run = capture(store, adapted("rslora"), method="pissa")
    attempt = run.begin_attempt(resume_step=7)
    attempt.write_base_tensors({"q_proj.weight": torch.zeros(2)})
    attempt.close()
    with pytest.raises(StoreError, match=r"'pissa' rewrote 1 base weights \(q_proj\.weight, \.\.\.\)"):
        export_adapter(run, 7, tmp_path / "adapter")


def test_a_run_without_an_adapter_config_says_so(store, tmp_path):
    run = capture(store, adapted("rslora"))
    (run.path / "adapter_config.json").unlink()
    with pytest.raises(StoreError, match=r"cannot read .*adapter_config\.json"):
        export_adapter(run, 7, tmp_path / "adapter")


def test_a_full_disk_leaves_no_half_adapter(store, tmp_path, disk):
    run = capture(store, adapted("rslora"))
    disk.room = 0  # the config; safetensors writes by itself
    with pytest.raises(StoreError, match=r"adapter_config\.json: No space left"):
        export_adapter(run, 7, tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["adapter_model.safetensors"]
    disk.room = None
    export_adapter(run, 7, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
