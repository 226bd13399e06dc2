"""Folders with the layout of DreamBench++: what is read, and what is refused with the file and line to mend."""

from pathlib import Path

import pytest

from src.data.images import find_images
from src.data.subject_folder import FolderSubject, read_subjects
from src.data.world.render import render
from src.data.world.scenes import subject_scene

KITTEN = "Kitten\na kitten on the grass\nA photo of the kitten, beside a kitten-shaped cloud and a second Kitten\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add(tmp_path, "live_subject/animal/00", KITTEN)
    add(tmp_path, "object/03", "\ufeffa red mug\n\n  a red mug on a table  \n", "cup")
    return tmp_path


def add(folder: Path, place: str, captions: str | None, noun: str = "cat") -> None:
    image, text = folder / "images" / f"{place}.jpg", folder / "captions" / f"{place}.txt"
    image.parent.mkdir(parents=True, exist_ok=True)
    text.parent.mkdir(parents=True, exist_ok=True)
    render(subject_scene(0, 0, noun)).save(image)
    if captions is not None:
        text.write_text(captions, encoding="utf-8")


def test_subjects_are_read_with_their_prompts(folder: Path) -> None:
    assert read_subjects(folder) == [
        FolderSubject(
            "live_subject_animal_00_kitten",
            "live_subject/animal",
            "Kitten",
            folder / "images" / "live_subject" / "animal" / "00.jpg",
            ("a {} on the grass", "A photo of the {}, beside a kitten-shaped cloud and a second {}"),
        ),
        FolderSubject(
            "object_03_red_mug", "object", "red mug", folder / "images" / "object" / "03.jpg", ("a {} on a table",)
        ),
    ]


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        (["animal"], ["live_subject_animal_00_kitten"]),
        (["live_subject/animal", "object"], ["live_subject_animal_00_kitten", "object_03_red_mug"]),
    ],
)
def test_categories_are_chosen_by_their_path_or_last_folder(folder: Path, categories: list, names: list) -> None:
    assert [one.name for one in read_subjects(folder, categories)] == names


def test_a_folder_without_categories_has_subjects_too(tmp_path: Path) -> None:
    add(tmp_path, "07", "cat\na cat\n")
    (only,) = read_subjects(tmp_path)
    assert (only.name, only.category, only.prompts) == ("subject_07_cat", ".", ("a {}",))


@pytest.mark.parametrize(
    ("place", "captions", "sentence"),
    [
        ("object/04", None, r"object/04\.jpg has no prompts: there is no .*captions/object/04\.txt"),
        ("object/04", " \n\n", r"captions/object/04\.txt is empty; write the noun in its first line"),
        ("object/04", "vase\n", r"04\.txt has the noun 'vase', but no prompt"),
        ("object/04", "vase\na vase\na cup\n", r"04\.txt, line 3: 'a cup' does not mention 'vase'"),
        ("object/04", "vase\na vase-like cup, vases\n", r"line 2: .* does not mention 'vase'"),
        ("object/04", "vase\na vase {}\n", r"line 2: 'a vase \{\}' has one of"),
        ("object/04", "vase\ntwo vase\n", r"line 2: 'two' stands before <object_04_vase>, which is one subject"),
        ("object/04", "<vase>\na vase\n", r"the first line of .*04\.txt is '<vase>'; write the subject's noun there"),
        ("object/03.b", "vase\na vase\n", None),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(folder: Path, place: str, captions: str, sentence: str) -> None:
    add(folder, place, captions)
    if sentence is None:
        assert [one.class_noun for one in read_subjects(folder, ["object"])] == ["vase", "red mug"]
        return
    with pytest.raises(ValueError, match=sentence):
        read_subjects(folder)


def test_lonely_files_and_wrong_folders_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match=r"holds no folder images; give the folder in which images/ and captions/ lie"):
        read_subjects(folder / "images")
    with pytest.raises(ValueError, match=r"has no category 'objects'; did you mean object\?"):
        read_subjects(folder, ["objects"])
    (folder / "captions" / "object" / "05.txt").write_text("vase\na vase\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"05\.txt has no image: there is no .*images/object/05 with \.jpg"):
        read_subjects(folder)
    (folder / "captions" / "object" / "05.txt").write_bytes("vase\n\xe9\n".encode("latin-1"))
    for suffix in ("jpg", "png"):
        render(subject_scene(0, 0, "cup")).save(folder / "images" / "object" / f"05.{suffix}")
    with pytest.raises(ValueError, match=r"05\.jpg and object/05\.png .* would share one captions file"):
        read_subjects(folder)
    (folder / "images" / "object" / "05.png").unlink()
    with pytest.raises(ValueError, match=r"05\.txt is no text in UTF-8"):
        read_subjects(folder)


def test_an_image_is_a_folder_of_one(folder: Path) -> None:
    image = folder / "images" / "object" / "03.jpg"
    assert find_images(image) == [image]
    with pytest.raises(ValueError, match="is a file; name the folder that holds the images, or an image"):
        find_images(folder / "captions" / "object" / "03.txt")
