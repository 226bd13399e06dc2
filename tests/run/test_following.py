"""The next command says what differs from the defaults, and nothing else."""

import pytest
from hydra import initialize_config_dir

from src.data.commands import command
from src.run.following import without_defaults

BANK = {"prompt": "a <rex> on the beach, at night", "bank.rex": "/tmp/rex's bank.safetensors"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({**BANK, "num_images": 4, "seed": 0, "backbone.path": "world/sd", "backbone.dtype": "bfloat16"}, 3),
        ({**BANK, "backbone.path": "world/sd", "backbone.dtype": "float32", "method.keep_context": True}, 2),
        ({**BANK, "method.sampling.num_inference_steps": 25, "method.sampling.guidance_scale": 3.0}, 2),
        ({**BANK, "method.sampling.num_inference_steps": 10, "method.blending_start": 0.9}, 3),
        ({**BANK, "backbone": "pixart_sigma", "backbone.path": "FOLDER", "num_images": 2}, 5),
        ({"method": "llmdiff", "adapter": "a b", "method.sampling.guidance_scale": 2.5, "prompt": "a dog"}, 3),
    ],
)
def test_settings_at_their_defaults_are_left_out_and_values_stay(given: dict, kept: int) -> None:
    shown = without_defaults(command("generate.py", given))
    names = list(given)
    expected = {
        key: value for key, value in given.items() if f" {key}=" in shown or f'"{key}=' in shown or key in shown
    }
    assert len(expected) == kept, shown
    assert [key for key in names if key in expected][:2] == names[:2]
    assert shown == command("generate.py", expected)


def test_it_is_shortened_inside_of_a_job_too(root) -> None:
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        assert without_defaults(command("generate.py", {**BANK, "seed": 0})) == command("generate.py", BANK)
