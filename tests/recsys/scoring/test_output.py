import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from recsys.scoring.output import OutputFolder


@dataclass
class Report:
    identity: dict[str, Any] = field(default_factory=dict)


def write_shard(output: OutputFolder, bucket: int) -> None:
    output.unfinished(bucket).write_text("rows")
    output.commit(bucket, {"rows": 1})


def test_a_job_resumes_only_what_it_began_itself(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    with output.locked():
        assert output.begin({"k": 1, "events": ["a"]}, overwrite=False) is False
        write_shard(output, 0)
    with output.locked():
        assert output.begin({"k": 1, "events": ["a"]}, overwrite=False) is True
        assert output.finished(0) == {"rows": 1}
        assert output.finished(1) is None
        with pytest.raises(ValueError, match="events changed; k was 1, is 2"):
            output.begin({"k": 2, "events": ["b"]}, overwrite=False)
        assert output.begin({"k": 2, "events": ["b"]}, overwrite=True) is False
        assert output.finished(0) is None
        assert not output.shard(0).exists()


def test_a_job_that_wrote_no_shard_gives_way_to_another(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    with output.locked():
        output.begin({"k": 1}, overwrite=False)
        assert output.begin({"k": 2}, overwrite=False) is False


def test_a_shard_killed_between_its_counts_and_its_name_is_not_done(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    with output.locked():
        output.begin({"k": 1}, overwrite=False)
        write_shard(output, 0)
        output.shard(0).rename(output.unfinished(0))
        assert output.finished(0) is None


def test_a_finished_job_keeps_its_rows_its_manifest_and_its_rejects_only(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    with output.locked():
        output.begin({"k": 1}, overwrite=False)
        (output.encoded / "rejects").mkdir(parents=True)
        (output.encoded / "rejects" / "events.parquet").write_text("rows")
        write_shard(output, 0)
        output.finish(Report({"k": 1}))
        names = sorted(p.name for p in output.path.iterdir())
        assert names == [".lock", "_SUCCESS", "_manifest.json", "_rejects", "part-00000.parquet"]
        assert output.is_complete
        assert output.begin({"k": 1}, overwrite=False) is True
        with pytest.raises(ValueError, match="k was 1, is 3"):
            output.begin({"k": 3}, overwrite=False)


def test_two_jobs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from recsys.scoring.output import OutputFolder\n"
        "with OutputFolder(Path(sys.argv[1])).locked(): pass"
    )
    command = [sys.executable, "-c", code, str(output.path)]
    root = Path(__file__).parents[3]
    with output.locked():
        other = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
        assert other.returncode == 1
        assert "Another scoring job (process" in other.stderr
        assert str(output.path) in other.stderr
    other = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert other.returncode == 0, other.stderr


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear reader")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.txt\)"):
        with OutputFolder(tmp_path).locked():
            pass
    assert (tmp_path / "thesis.txt").read_text() == "dear reader"
