from __future__ import annotations

import base64
import os
import sys
import zlib

import asking_fakes
import pytest
from asking_fakes import picture
from langchain_core.messages import convert_to_openai_messages

from protector_guardrails.errors import ConfigurationError, MissingExtraError, WeightsError
from protector_guardrails.evaluation.defense import images
from protector_guardrails.evaluation.defense.cases import Case
from protector_guardrails.evaluation.defense.chat_mllm import message_of
from protector_guardrails.evaluation.defense.images import UnreadableImageError, read_image
from protector_guardrails.evaluation.defense.mllms import UnanswerableError, load_mllm, one_line

BREAD = Case(id="b", scenario="s", kind="text", question="How is bread baked?")


def shown(path, question: str = "What is this?", **more) -> Case:
    return Case(id="i", scenario="s", kind="image", question=question, image=path, **more)


# What a model is shown ---------------------------------------------------------------


async def test_a_text_case_is_asked_without_an_image_and_an_image_case_with_its_own(tmp_path):
    mllm = load_mllm("asking_fakes:make_model")
    assert await mllm.answer(BREAD) == "text only: How is bread baked?"
    assert await mllm.answer(shown(picture(tmp_path / "a.png", size=(50, 20)))) == "PNG 50x20: What is this?"
    assert await mllm.answer(shown(picture(tmp_path / "b.jpg", size=(31, 9)), "")) == "JPEG 31x9: "


def test_the_image_is_a_standard_block_with_the_very_bytes(tmp_path):
    path = picture(tmp_path / "a.png")
    text, block = message_of(shown(path, description="a loaf")).content
    assert text == {"type": "text", "text": "What is this?"}
    assert set(block) == {"type", "base64", "mime_type"} and block["mime_type"] == "image/png"
    assert base64.b64decode(block["base64"]) == path.read_bytes()


def test_providers_of_the_openai_form_can_take_the_image(tmp_path):
    path = picture(tmp_path / "a.png")
    [message] = convert_to_openai_messages([message_of(shown(path))])
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    assert message["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


def test_the_mime_type_is_of_the_content_not_of_the_name(tmp_path):
    path = picture(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_image(path)[1] == "image/png"


def test_an_image_that_is_only_described_is_not_asked_about():
    with pytest.raises(UnreadableImageError, match="only its description"):
        message_of(Case(id="d", scenario="s", kind="image", question="What?", description="a loaf"))


def test_an_answer_without_its_question_is_no_question():
    with pytest.raises(UnanswerableError, match="the question is not told"):
        message_of(Case(id="d", scenario="s", kind="text", question=""))


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = [len(part[4:]).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in (head, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no image in one of the forms"),
        (b"<svg/>", "no image in one of the forms"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image in one of the forms"),
        (png(20_000, 20_000), "cannot be read|pixels, which is too many"),
        (png(10_000, 10_000), "10000 x 10000 pixels, which is too many"),
        (png(100, 100), "cannot be read"),
    ],
)
def test_unreadable_images_and_bombs_are_refused_by_name(tmp_path, data, told):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=told) as caught:
        read_image(path)
    assert "bad.png" in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_cut_off_or_missing_or_huge_file_is_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "cut.jpg")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        read_image(path)
    with pytest.raises(UnreadableImageError, match=r"cannot be read \(FileNotFoundError\)"):
        read_image(tmp_path / "gone.png")
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(UnreadableImageError, match="larger than"):
        read_image(picture(tmp_path / "large.png"))


# What a model says ---------------------------------------------------------------------


async def test_blocks_and_refusals_are_read_as_text():
    assert await load_mllm("asking_fakes:Blocky").answer(BREAD) == "Knead. Wait."
    assert await load_mllm("asking_fakes:Refuser").answer(BREAD) == "I'd rather not."


# Which model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "name"),
    [("MODEL", "looking-instance"), ("make_model", "looking-made"), ("LookingModel", "looking-1")],
)
async def test_an_import_path_names_an_instance_a_class_or_a_function(attribute, name):
    mllm = load_mllm(f"asking_fakes:{attribute}")
    assert mllm.name == name
    assert (await mllm.answer(BREAD)).startswith("text only")
    assert mllm.fingerprint == load_mllm(f"asking_fakes:{attribute}").fingerprint


def test_a_composed_model_is_called_after_the_model_in_it(monkeypatch):
    monkeypatch.setattr(asking_fakes, "BOUND", asking_fakes.MODEL.bind(stop=["x"]).with_retry(), raising=False)
    assert load_mllm("asking_fakes:BOUND").name == "looking-instance"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nothing", "unknown model 'nothing'; use package.module:object"),
        ("asking_fakes:", "unknown model"),
        ("asking_fakes:gone", "cannot be imported: .* no attribute 'gone'"),
        ("no_such_module.at_all:model", "cannot be imported: No module named 'no_such_module'"),
        ("asking_fakes:NOT_A_MODEL", "is int, not a chat model"),
        ("asking_fakes:broken_factory", "could not be made: RuntimeError: no key"),
        ("asking_fakes:no_model", "gives int, not a chat model"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec, told):
    with pytest.raises(ConfigurationError, match=told):
        load_mllm(spec)


def test_a_provider_without_its_package_says_what_to_install():
    pytest.importorskip("langchain")
    with pytest.raises(ConfigurationError, match=r"model 'baseten:m'.*langchain-baseten"):
        load_mllm("baseten:m")


def test_a_provider_is_asked_for_by_name(monkeypatch):
    chat_models = pytest.importorskip("langchain.chat_models")
    monkeypatch.setattr(
        chat_models, "init_chat_model", lambda spec: asking_fakes.LookingModel(model_name=f"got {spec}")
    )
    assert load_mllm("openai:gpt-4o-mini").name == "got openai:gpt-4o-mini"

    def keyless(spec):
        raise ValueError("the api_key must be set\n" + "x" * 900)

    monkeypatch.setattr(chat_models, "init_chat_model", keyless)
    with pytest.raises(ConfigurationError, match=r"made: ValueError: the api_key must be set x+$") as caught:
        load_mllm("openai:gpt-4o-mini")
    assert len(str(caught.value)) < 300


def test_without_langchain_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("protector_guardrails.evaluation.defense.mllms._providers", lambda: ())
    with pytest.raises(MissingExtraError, match=r"protector-guardrails\[agents\]"):
        load_mllm("someprovider:gpt-4o-mini")


def test_errors_are_kept_as_one_short_line():
    assert one_line(ValueError("a\n b\t" + "x" * 500)) == "ValueError: a b " + "x" * 196
    assert one_line(TimeoutError()) == "TimeoutError"


# A model on disk ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory):
    pytest.importorskip("transformers")
    from tiny_vlm import write_tiny_vlm

    return write_tiny_vlm(tmp_path_factory.mktemp("models") / "tiny-vlm")


async def test_a_model_on_disk_answers_with_and_without_an_image(tiny_vlm, tmp_path):
    mllm = load_mllm(f"transformers:{tiny_vlm}")
    assert (mllm.name, mllm.concurrency) == ("tiny-vlm", 1)
    from tiny_vlm import WORDS

    red, blue = picture(tmp_path / "red.png", "what"), picture(tmp_path / "blue.png", "is this soup", size=(16, 16))
    answers = [await mllm.answer(case) for case in (BREAD, shown(red), shown(blue), shown(red))]
    assert all(set(answer.split()) <= set(WORDS) for answer in answers)
    assert answers[1] == answers[3]
    assert len(set(answers)) > 1  # the picture or the question made a difference
    with pytest.raises(UnreadableImageError):
        await mllm.answer(shown(tmp_path / "gone.png"))


async def test_it_gives_what_the_library_gives(tiny_vlm, tmp_path):
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = picture(tmp_path / "a.png")
    processor, model = (kind.from_pretrained(tiny_vlm) for kind in (AutoProcessor, AutoModelForImageTextToText))
    inputs = processor(text="USER : <image> what is this ? ASSISTANT :", images=Image.open(path), return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=512, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(written, skip_special_tokens=True).strip()
    assert await load_mllm(f"transformers:{tiny_vlm}").answer(shown(path, "what is this ?")) == expected
    assert expected


def test_folders_that_hold_no_such_model_are_refused(tiny_vlm, tmp_path):
    import shutil

    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        load_mllm(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigurationError, match="no model that can be loaded"):
        load_mllm(f"transformers:{tmp_path}")
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_vlm, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="no model that can be loaded"):
        load_mllm(f"transformers:{pickled}")


def test_missing_weights_are_never_random_ones(tiny_vlm, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_vlm, tmp_path / "holed")
    weights = load_file(tmp_path / "holed" / "model.safetensors")
    dropped = next(name for name in sorted(weights) if "projector" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != dropped},
        tmp_path / "holed" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(WeightsError, match="1 weights are missing"):
        load_mllm(f"transformers:{tmp_path / 'holed'}")


def test_the_fingerprint_changes_with_the_model(tiny_vlm, tmp_path):
    import shutil

    pytest.importorskip("transformers")
    from protector_guardrails.evaluation.defense.local_mllm import _fingerprint

    shutil.copytree(tiny_vlm, tmp_path / "other")
    assert _fingerprint(tiny_vlm, 9) == _fingerprint(tmp_path / "other", 9) != _fingerprint(tiny_vlm, 8)
    (tmp_path / "other" / "chat_template.jinja").write_text("changed")
    assert _fingerprint(tiny_vlm, 9) != _fingerprint(tmp_path / "other", 9)


def test_recorded_and_remote_models_need_no_torch():
    import subprocess

    code = (
        "import sys; from protector_guardrails.evaluation.defense import answering, benchmarks, mllms, recorded; "
        "print([m for m in ('torch', 'transformers', 'langchain', 'langchain_core', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
