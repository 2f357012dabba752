import pytest

from jaxdl import doctor


def look(capsys):
    with pytest.raises(SystemExit) as leaving:
        doctor.main()
    return leaving.value.code, capsys.readouterr().out


def test_the_doctor_prints_versions_devices_cache_and_data(capsys, monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, out = look(capsys)
    assert (status, "PROBLEM" in out) in {(0, False), (1, True)}
    for text in (
        "Python 3.",
        "jaxlib",
        "device    0: ",
        "cache     ",
        f"prepared in {tmp_path}: mnist",
    ):
        assert text in out
    assert sum(line.startswith("device ") for line in out.splitlines()) == 8


def test_this_installation_computes_its_reductions_right():
    assert doctor.reductions_are_right()


@pytest.mark.parametrize(
    ("arrange", "told"),
    [
        (lambda m: m.setattr(doctor, "reductions_are_right", lambda: False), "reductions wrongly"),
        (lambda m: m.setattr(doctor, "guards", lambda version: {}), "none of those"),
        (lambda m: m.setenv("JAX_ENABLE_X64", "1"), "JAX_ENABLE_X64"),
        (lambda m: m.setattr(doctor, "installed", lambda name: "2.20.0"), "both installed"),
    ],
)
def test_a_problem_is_told_with_status_1(arrange, told, capsys, monkeypatch):
    arrange(monkeypatch)
    status, out = look(capsys)
    assert status == 1
    assert any(told in line for line in out.splitlines() if line.startswith("PROBLEM"))


def test_a_package_that_is_not_installed_has_no_version():
    assert doctor.installed("no-such-package") is None
    assert doctor.installed("jax")
