"""The data of several subjects: that of each, what identifies them, and what a single subject's method is told."""

import pytest
from PIL import Image

from src.data.combination import CombinationData
from src.data.subject import ConceptData


@pytest.fixture
def folders(tmp_path):
    for name, color in (("rex", "red"), ("tom", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), color).save(tmp_path / name / "a.png")
    return tmp_path


def test_each_subject_has_the_data_that_it_would_have_alone(folders):
    tom = {"class_noun": "cat", "instance_dir": str(folders / "tom")}
    data = CombinationData(str(folders / "rex"), "dog", {"tom": tom}, resolution=64, num_views=3, seed=5)
    assert [one.class_noun for one in data.each] == ["dog", "cat"]
    for name, noun, one in zip(("rex", "tom"), ("dog", "cat"), data.each, strict=True):
        alone = ConceptData(str(folders / name), noun, resolution=64, num_views=3, seed=5)
        pairs = zip(one.instance_views(), alone.instance_views(), strict=True)
        assert all((ours.pixels == other.pixels).all() for ours, other in pairs)
    with pytest.raises(ValueError, match=r"learns one subject, but data\.others gives tom as well; choose method=mudi"):
        data.instance_views()
    alone = CombinationData(str(folders / "rex"), "dog", resolution=64)
    assert len(alone.each) == 1 and alone.instance_views()


def test_a_combination_is_identified_by_photos_masks_nouns_and_names(folders):
    def content(**changes):
        tom = {"class_noun": "cat", "instance_dir": str(folders / "tom"), **changes}
        return CombinationData.content({"instance_dir": str(folders / "rex"), "others": {"tom": tom}})

    before = content()
    assert before == content(instance_dir=str(folders / "tom" / ".." / "tom"))
    assert before != content(class_noun="dog") and before != content(instance_dir=str(folders / "rex"))
    (folders / "tom" / "masks").mkdir()
    Image.new("L", (64, 64), 255).save(folders / "tom" / "masks" / "a.png")
    assert before != content()
    alone = CombinationData.content({"instance_dir": str(folders / "rex")})
    assert alone == ConceptData.content({"instance_dir": str(folders / "rex")})


def test_a_folder_without_photos_is_refused_before_anything_is_learnt(folders):
    with pytest.raises(ValueError, match="does not exist"):
        CombinationData(
            str(folders / "rex"), "dog", {"tom": {"class_noun": "cat", "instance_dir": str(folders / "no")}}
        )
