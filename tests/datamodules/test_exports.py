import subprocess
import sys

import datamodules


def test_every_public_name_is_there():
    for name in datamodules.__all__:
        assert getattr(datamodules, name).__name__ == name
    assert sorted(name for names in datamodules.ROOMS.values() for name in names) == sorted(datamodules.__all__)


def test_recording_does_not_import_lightning():
    code = "import sys; from datamodules import EpisodeWriter, Spec; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
