"""What a checkpoint's card says, that the Hub accepts it, and that fine-tuning adds to it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from transformers import BertForMaskedLM, Trainer, TrainingArguments

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import write_checkpoint
from hf_compact_embeddings.cli.main import build_parser, main
from hf_compact_embeddings.hub import TaskResult, make_card, write_card
from hf_compact_embeddings.hub.merged_card import complete_card, merged_card
from hf_compact_embeddings.hub.training_card import KeepCompactCard
from hf_compact_embeddings.modeling import modeling_compact
from hf_compact_embeddings.modeling.modeling_compact import KEPT_CARD
from hf_compact_embeddings.version import __version__

from ..tiny_models import tiny_model
from ..tools import REPOSITORY, tiny_texts, tiny_tokenizer
from .compact import BASE, BASE_CARD, OPTIONS, REPO, compact_model, compact_report, dense_model, push
from .server import HubServer

RESULT = TaskResult(
    task_type="sentence-similarity",
    dataset_name="A benchmark",
    dataset_id="org/benchmark",
    task_id="default",
    metric="spearmanr",
    before=0.81,
    after=0.79,
)


def card_of(hub: HubServer, repo_id: str = REPO) -> ModelCard:
    return ModelCard(hub.files(repo_id)["README.md"].decode())


def test_the_card_of_a_push(hub: HubServer, api: Any) -> None:
    hub.seed(BASE, {"README.md": BASE_CARD.encode()})
    push(base_model=BASE, results=[RESULT, dataclasses.replace(RESULT, dataset_id=None, dataset_name="Mine")])
    card = card_of(hub)
    card.validate()
    data = card.data.to_dict()
    assert data["base_model"] == BASE
    assert data["base_model_relation"] == "quantized"
    assert data["library_name"] == "transformers"
    assert (data["license"], data["language"]) == ("apache-2.0", ["en", "de"])
    assert data["tags"] == ["compact-embeddings", "subspace", "legal"]
    # The head of the checkpoint knows its task better than the original's card.
    assert data["pipeline_tag"] == "fill-mask"
    results = data["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [0.79, 0.79]
    assert data["model-index"][0]["name"] == "compact"
    assert "| sentence-similarity | A benchmark | spearmanr | 0.8100 | 0.7900 |" in card.text
    entries = parse_eval_result_entries(yaml.safe_load(hub.files(REPO)[".eval_results/benchmark-default.yaml"]))
    assert entries == [EvalResultEntry(dataset_id="org/benchmark", task_id="default", value=0.79)]


def test_the_figures_are_the_reports(hub: HubServer, api: Any) -> None:
    push()
    text, report = card_of(hub).text, compact_report()
    whole = sum(p.numel() * p.element_size() for p in dense_model().state_dict(keep_vars=True).values()) - sum(
        t.numel() * t.element_size()
        for name, t in dense_model().state_dict().items()
        if name in dense_model()._tied_weights_keys
    )
    table = dense_model().get_input_embeddings().weight
    for name, before, after in (
        ("embedding table", table.numel() * 4, report.compact_bytes),
        ("whole model", whole, report.model_bytes),
    ):
        ratio = f"{before / after:.1f}x smaller"
        assert f"| {name} | {before / 1e3:.1f} kB | {after / 1e3:.1f} kB | {ratio} |" in text
    assert f"| relative mean squared error | {report.relative_mse:.4f} |" in text
    assert f"| mean cosine of the rows | {report.mean_cosine:.4f} |" in text
    assert f"{report.private_rows} rows that are kept exactly" in text
    assert "output head is tied to the table" in text
    assert "None were measured on a task." in text
    assert report.private_rows == 5
    code = [content for name, content in hub.files(REPO).items() if name.endswith(".py")]
    assert f"lie {len(code)} code files of together {sum(map(len, code)) / 1e3:.1f} kB" in text


def test_the_collisions_are_the_reports() -> None:
    compact = hce.compress(dense_model(), "subspace", num_subspaces=1, codebook_size=4)
    report = hce.inspect(compact, against=dense_model())
    text = make_card(compact, report).text
    assert report.collisions > report.rows / 2
    assert f"| rows with the same vector as an earlier one | {report.collisions:,} of {report.rows:,} |" in text
    assert f"- Rows with the same vector as an earlier one: {report.collisions:,}." in text
    none = dataclasses.replace(report, collisions=0)
    assert "- Rows with the same codes" not in make_card(compact, none).text


def test_without_a_report_nothing_is_claimed() -> None:
    card = make_card(compact_model())
    assert "Not measured: the original was not at hand" in card.text
    assert "relative mean squared error" not in card.text
    assert not re.search(r"\b(nan|None)\b(?! were)", card.text)
    assert "license" not in card.data.to_dict()


def test_how_to_load_works_as_the_card_says(hub: HubServer, api: Any) -> None:
    commit = push().commit
    blocks = re.findall(r"```python\n(.*?)```", card_of(hub).text, flags=re.DOTALL)
    assert len(blocks) == 2
    assert ["trust_remote_code=True" in block for block in blocks] == [False, True]
    for block in blocks:
        assert block.count("revision=commit") == 2
        names: dict[str, Any] = {}
        exec(block.replace("…", str(commit)), names)
        assert type(names["model"]).__name__ == "CompactBertForMaskedLM"
        assert names["tokenizer"]("w10").input_ids == tiny_tokenizer()("w10").input_ids


def test_the_command_in_the_card_makes_the_same_checkpoint(tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    dense_model("BertForPreTraining").save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(20)))
    options = ["--set", "num_subspaces=3", "--set", "codebook_size=8", "--set", "private_rows=9"]
    more = ["--seed", "7", "--texts", str(tmp_path / "texts.txt"), "--head", "AutoModelForMaskedLM"]
    first = tmp_path / "first"
    arguments = ["compress", str(dense), "--method", "subspace", *options, *more, "--output", str(first)]
    assert main([*arguments, "--json"]) == 0
    command = re.search(r"^hf-compact (compress .*)$", (first / "README.md").read_text(), flags=re.MULTILINE)[1]
    assert f"pip install hf_compact_embeddings=={__version__}" in (first / "README.md").read_text()
    second = tmp_path / "second"
    named = {"PATH_OR_HUB_ID_OF_THE_ORIGINAL": dense, "TEXTS": tmp_path / "texts.txt", "OUTPUT": second}
    words = [str(named.get(word, word)) for word in command.split()]
    assert build_parser().parse_args(words).seed == 7
    assert main(words) == 0
    files = {file.name: file.read_bytes() for file in first.iterdir()}
    assert files == {file.name: file.read_bytes() for file in second.iterdir()}
    assert str(tmp_path).encode() not in b"".join(files.values())


@pytest.mark.parametrize("layers", ["int8", "int4", "bfloat16"])
def test_small_layers_are_told(layers: str, tmp_path: Path) -> None:
    dense = tiny_model("bert")
    compact = hce.compress(dense, "scalar", layers=layers)
    report = hce.inspect(compact, against=dense)
    folder = write_checkpoint(compact, tmp_path / "compact", tiny_tokenizer())
    write_card(folder, compact, report)
    text = (folder / "README.md").read_text()
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md")
    assert f"The whole folder takes {size / 1e3:.1f} kB: weights, code, tokenizer and configuration." in text
    before, after = report.dense_model_bytes, report.model_bytes
    assert before == sum(
        tensor.nbytes for tensor in {id(t): t for t in dense.state_dict(keep_vars=True).values()}.values()
    )
    assert f"| whole model | {before / 1e3:.1f} kB | {after / 1e3:.1f} kB | {before / after:.1f}x smaller |" in text
    assert f"# BertForMaskedLM-scalar-4x-{layers}\n" in text or f"-{layers}\n" in text
    if layers == "bfloat16":
        assert "They are stored as bfloat16." in text and "linear layers" not in text
    else:
        assert f"weights of 12 linear layers are {layers} codes" in text
        assert f"| linear layers | {report.layers.dense_bytes / 1e3:.1f} kB |" in text
    # Without a tokenizer the card tells how in Python.
    assert f"layers='{layers}'" in text


def test_a_model_made_without_a_tokenizer_says_so() -> None:
    compact = hce.compress(dense_model(), "subspace", **OPTIONS)
    text = make_card(compact).text
    assert "hf_compact_embeddings.compress('PATH_OR_HUB_ID_OF_THE_ORIGINAL', 'subspace', num_subspaces=4" in text
    assert "without a tokenizer" in text


def test_a_calibrated_model_says_how_it_was_trained() -> None:
    compact = hce.compress(dense_model(), "subspace", **OPTIONS)
    assert "calibrated" not in make_card(compact).text
    assert "The other weights were copied from the original" in make_card(compact).text
    note = {"teacher": True, "losses": {"states": 1.0, "sentence": 0.5}, "trains": "all", "steps": 1500}
    note |= {"batch_size": 64, "learning_rate": 1e-4, "table_learning_rate": 0.01, "seed": 3}
    compact.config.compact_source["calibration"] = note
    text = make_card(compact).text
    assert "calibrated against the original: 1,500 steps of 64 texts" in text
    assert '`trains="all"`, losses states 1, sentence 0.5, learning rates 0.0001 and 0.01 (table), seed 3.' in text
    assert "were trained with the table" in text and "copied from the original" not in text
    note |= {"teacher": False, "trains": "tables"}
    assert "Of the way" not in make_card(compact).text
    note["share"] = 0.25
    assert "Of the way from the fit to there, its values went 25%." in make_card(compact).text
    assert "calibrated on text alone" in make_card(compact).text
    assert "copied from the original" in make_card(compact).text


def test_a_model_from_scratch_has_no_original() -> None:
    config = hce.CompactBertConfig(
        **{name: getattr(dense_model().config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=2,
        compact_embeddings=hce.SubspaceConfig(num_subspaces=4, codebook_size=16, init="random"),
    )
    card = make_card(hce.CompactBertModel(config))
    assert "trained from scratch" in card.text
    assert "base_model_relation" not in card.data.to_dict()


def test_an_untied_head_is_named_as_still_dense() -> None:
    compact = hce.compress(tiny_model("llama-untied"), "subspace", **OPTIONS)
    text = make_card(compact).text
    assert "`lm_head.weight` has a row for each token too and is still dense" in text
    assert "tied" not in text


def test_the_original_out_of_reach(hub: HubServer, api: Any, caplog: pytest.LogCaptureFixture) -> None:
    card = make_card(compact_model(), base_model="nobody/nothing")
    card.validate()
    assert card.data.to_dict()["base_model"] == "nobody/nothing"
    assert "could not be read, so its licence and languages are not in this card" in caplog.text


def test_the_card_of_a_local_original_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    dense_model().save_pretrained(folder)
    (folder / "README.md").write_text(BASE_CARD)
    compact = hce.compress(BertForMaskedLM.from_pretrained(folder), "subspace", **OPTIONS)
    data = make_card(compact).data.to_dict()
    assert (data["license"], data["language"]) == ("apache-2.0", ["en", "de"])
    assert str(tmp_path) not in str(make_card(compact))


def test_the_hub_id_is_known_from_the_cache(hub: HubServer, api: Any, tmp_path: Path) -> None:
    dense_model().save_pretrained(tmp_path / "base")
    hub.seed(BASE, {file.name: file.read_bytes() for file in (tmp_path / "base").iterdir()})
    commit = hub.refs(BASE)["refs/heads/main"]
    by_name = hce.compress(BASE, "subspace", **OPTIONS).config.compact_source
    by_folder = hce.compress(api.snapshot_download(BASE), "subspace", **OPTIONS).config.compact_source
    assert by_name == by_folder
    assert (by_name["base_model"], by_name["revision"]) == (BASE, commit)


# Fine-tuning.


def trainer_of(folder: Path, model: Any, **options: Any) -> Trainer:
    rows = [dict(tiny_tokenizer()(text), labels=[1] * 10) for text in tiny_texts(4)]
    arguments = TrainingArguments(str(folder), use_cpu=True, max_steps=1, learning_rate=1e-2, **options)
    return Trainer(model, arguments, train_dataset=rows)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = write_checkpoint(compact_model(), tmp_path / "compact", tiny_tokenizer())
    write_card(folder, compact_model(), compact_report())
    return folder


@pytest.mark.parametrize("same", [False, True], ids=["another-folder", "the-same-folder"])
def test_plain_trainer_loses_no_card(same: bool, saved: Path, tmp_path: Path) -> None:
    before = (saved / "README.md").read_text()
    folder = saved if same else tmp_path / "tuned"
    trainer = trainer_of(folder, type(compact_model()).from_pretrained(saved))
    trainer.train()
    # As `trainer.push_to_hub()` does, in this order.
    trainer.save_model()
    trainer.create_model_card(tags="compact-embeddings")
    assert (folder / KEPT_CARD).read_text() == before
    assert f"# {folder.name}" in (folder / "README.md").read_text()
    # The next to train it, or to push it, knows both.
    tuned = type(compact_model()).from_pretrained(folder)
    tuned.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / KEPT_CARD).read_text() == before
    for _ in range(2):
        complete_card(folder)
        card = ModelCard.load(folder / "README.md")
        assert card.text.startswith(ModelCard(before).text.rstrip())
        assert re.findall(r"^## Fine-tuning: (.*)$", card.text, flags=re.MULTILINE) == [folder.name]
        assert not (folder / KEPT_CARD).exists()


def test_a_folder_that_plain_trainer_wrote_is_pushed_with_one_card(
    saved: Path, tmp_path: Path, hub: HubServer, api: None
) -> None:
    trainer = trainer_of(tmp_path / "tuned", type(compact_model()).from_pretrained(saved))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    hce.push_to_hub(tmp_path / "tuned", REPO)
    files = hub.files(REPO)
    assert KEPT_CARD not in files
    card = files["README.md"].decode()
    assert "## Size" in card and "## Fine-tuning: " in card


def test_a_card_that_is_not_trainers_stays(saved: Path) -> None:
    type(compact_model()).from_pretrained(saved).save_pretrained(saved)
    before = (saved / "README.md").read_text()
    assert (saved / KEPT_CARD).read_text() == before
    complete_card(saved)
    assert (saved / "README.md").read_text() == before and not (saved / KEPT_CARD).exists()


def test_a_model_that_was_just_compressed_has_no_card(tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    dense_model().save_pretrained(dense)
    (dense / "README.md").write_text(BASE_CARD + "\nlike compact-embeddings\n")
    hce.compress(BertForMaskedLM.from_pretrained(dense), "subspace", **OPTIONS).save_pretrained(tmp_path / "compact")
    assert not (tmp_path / "compact" / KEPT_CARD).exists()


def test_a_card_out_of_reach_does_not_keep_a_model_from_loading(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("the cache cannot be written")

    monkeypatch.setattr(modeling_compact, "cached_file_or_none", refuse)
    assert type(compact_model()).from_pretrained(saved)._compact_card is None


def test_the_callback_in_another_folder_and_in_the_same(saved: Path, tmp_path: Path) -> None:
    before = ModelCard.load(saved / "README.md")
    for folder in (tmp_path / "tuned", saved):
        trainer = trainer_of(folder, type(compact_model()).from_pretrained(saved))
        trainer.add_callback(hce.KeepCompactCard(trainer))
        trainer.train()
        assert "## Fine-tuning: " in (folder / "README.md").read_text(), "written when training ends"
        for _ in range(2):
            trainer.save_model()
            trainer.create_model_card(dataset="A corpus", dataset_tags="org/corpus", tags="mine")
        card = ModelCard.load(folder / "README.md")
        assert card.text.startswith(before.text.rstrip())
        assert card.text.count("## Fine-tuning: ") == 1
        assert card.text.count("learning_rate: 0.01") == 1
        assert card.data.datasets == ["org/corpus"]
        assert card.data.tags == [*before.data.tags, "mine", "generated_from_trainer"]
        assert (folder / KEPT_CARD).read_text() == (folder / "README.md").read_text()
    # A further training of what was tuned adds a second section.
    trainer = trainer_of(tmp_path / "further", type(compact_model()).from_pretrained(tmp_path / "tuned"))
    trainer.add_callback(hce.KeepCompactCard(trainer))
    trainer.train()
    text = (tmp_path / "further" / "README.md").read_text()
    assert re.findall(r"^## Fine-tuning: (.*)$", text, flags=re.MULTILINE) == ["tuned", "further"]


def test_the_callback_completes_what_trainer_pushes(hub: HubServer, api: Any, tmp_path: Path) -> None:
    hub.seed(BASE, {"README.md": BASE_CARD.encode()})
    push(base_model=BASE)
    model = type(compact_model()).from_pretrained(REPO)
    trainer = trainer_of(tmp_path / "tuned", model, push_to_hub=True, hub_model_id="tester/tuned")
    trainer.add_callback(KeepCompactCard(trainer))
    trainer.train()
    for _ in range(2):
        trainer.push_to_hub()
    before, after = card_of(hub), card_of(hub, "tester/tuned")
    assert after.text.startswith(before.text.rstrip())
    addition = after.text[len(before.text.rstrip()) :]
    assert addition.count("## Fine-tuning: tuned") == 1
    assert "before this fine-tuning" in addition and "learning_rate: 0.01" in addition
    assert (after.data.license, after.data.base_model) == ("apache-2.0", BASE)
    assert {"compact-embeddings", "generated_from_trainer"} <= set(after.data.tags)


def test_the_callback_finds_the_card_of_a_model_that_was_not_loaded(saved: Path) -> None:
    trainer = trainer_of(saved, hce.compress(dense_model(), "subspace", **OPTIONS))
    before = ModelCard.load(saved / "README.md").text.rstrip()
    trainer.add_callback(KeepCompactCard(trainer))
    trainer.create_model_card()
    assert ModelCard.load(saved / "README.md").text.startswith(before)


def test_the_callback_changes_one_trainer(saved: Path, tmp_path: Path) -> None:
    native = Trainer.create_model_card
    trainer, other = (trainer_of(tmp_path / name, type(compact_model()).from_pretrained(saved)) for name in "ab")
    trainer.add_callback(KeepCompactCard(trainer))
    assert Trainer.create_model_card is native and "create_model_card" not in vars(other)


def test_dense_models_get_trainers_own_card(tmp_path: Path) -> None:
    write_checkpoint(compact_model(), tmp_path / "seen").joinpath("README.md").write_text("---\ntags: [x]\n---\n")
    trainer = trainer_of(tmp_path / "dense", tiny_model("bert"))
    trainer.add_callback(KeepCompactCard(trainer))
    trainer.create_model_card()
    text = (tmp_path / "dense" / "README.md").read_text()
    assert "# dense" in text
    assert "compact" not in text


def test_results_of_both_cards_are_kept() -> None:
    before = str(make_card(compact_model(), compact_report(), results=[RESULT], repo_id=REPO))
    metrics = [{"type": "accuracy", "name": "Accuracy", "value": 0.5}]
    result = {"task": {"type": "fill-mask"}, "dataset": {"type": "a", "name": "A"}, "metrics": metrics}
    training = yaml.safe_dump({"model-index": [{"name": "tuned", "results": [result]}], "metrics": ["accuracy"]})
    merged = ModelCard(merged_card(before, f"---\n{training}---\n\n# tuned\n\n## Training\n"))
    assert [entry.metric_type for entry in merged.data.eval_results] == ["spearmanr", "accuracy"]
    assert (merged.data.model_name, merged.data.metrics) == ("compact", ["accuracy"])
    assert "## Fine-tuning: tuned\n" in merged.text
    assert "### Training\n" in merged.text


CARDS = sorted((REPOSITORY / "model_cards").glob("*.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_cards_in_the_repository_are_valid(hub: HubServer, api: Any, path: Path) -> None:
    card = ModelCard.load(path)
    card.validate()
    data = card.data.to_dict()
    assert data["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (data["license"], data["base_model_relation"]) == ("apache-2.0", "quantized")
    assert data["model-index"][0]["name"] == card.text.split("# ", 1)[1].splitlines()[0] == path.stem
    assert f"--method {data['tags'][1]} " in card.text


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sha256sum_gives_the_hash_in_the_card(tmp_path: Path) -> None:
    folder = write_checkpoint(compact_model(), tmp_path / "compact", tiny_tokenizer())
    write_card(folder, compact_model())
    command = re.search(r"`(sha256sum \*\.py \| sha256sum)` gives `([0-9a-f]{64})`", (folder / "README.md").read_text())
    done = subprocess.run(command[1], shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == command[2]


@pytest.mark.parametrize("tables", ["head", "all"])
def test_a_head_of_its_own_is_told(tables: str) -> None:
    dense = tiny_model("llama-untied")
    compact = hce.compress(dense, "subspace", tables=tables, **OPTIONS)
    report = hce.inspect(compact, against=dense)
    text = make_card(compact, report).text
    named = "output head" if tables == "head" else "token-embedding table and output head"
    assert f"A LlamaForCausalLM with a compact {named}: **" in text
    assert f"| output head | 11.5 kB | {report.tables[-1].compact_bytes / 1e3:.1f} kB |" in text
    assert ("| embedding table | 11.5 kB |" in text) == (tables == "all")
    assert ("is still dense" in text) == (tables == "head")
    assert f"tables='{tables}'" in text, "how to make it again"
    prefix = "output head: " if tables == "all" else ""
    assert f"| {prefix}relative mean squared error | {report.tables[-1].relative_mse:.4f} |" in text
    shape = "of the tables (120 rows of 24 each)" if tables == "all" else "of the table (120 rows of 24)"
    assert f"bits for each weight {shape}" in text
    assert "tied to the table" not in text


@pytest.mark.parametrize(
    "asked",
    [["--ratio", "3"], ["--max-size", "5KB", "--effort", "fast"], ["--method", "rotated", "--set", "max_bytes=5000"]],
    ids=str,
)
def test_the_command_for_two_tables_makes_them_again(asked: list[str], tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    tiny_model("llama-untied").save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["compress", str(dense), "--tables", "all", *asked, "--output", str(first), "--json"]) == 0
    command = re.search(r"^hf-compact (compress .*)$", (first / "README.md").read_text(), flags=re.MULTILINE)[1]
    named = {"PATH_OR_HUB_ID_OF_THE_ORIGINAL": dense, "OUTPUT": second}
    assert main([str(named.get(word, word)) for word in command.split()]) == 0
    files = {file.name: file.read_bytes() for file in first.iterdir()}
    assert files == {file.name: file.read_bytes() for file in second.iterdir()}


def test_a_push_of_two_tables_is_planned() -> None:
    compact = hce.compress(tiny_model("llama-untied"), "subspace", tables="all", **OPTIONS)
    planned = hce.push_to_hub(compact, REPO, tokenizer=tiny_tokenizer(), dry_run=True)
    assert {"model.safetensors", "structure_subspace.py", "tied.py"} <= {file.path for file in planned.files}
