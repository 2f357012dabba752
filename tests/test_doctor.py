import jax
import pytest

from jaxdl import doctor


def look(capsys):
    with pytest.raises(SystemExit) as leaving:
        doctor.main()
    return leaving.value.code, capsys.readouterr().out


def without_devices(*words):
    def devices():
        raise (RuntimeError if words else AssertionError)(*words)

    return lambda m: m.setattr(jax, "devices", devices)


def test_the_doctor_prints_versions_devices_cache_and_data(capsys, monkeypatch, tmp_path):
    for folder in ("mnist/3.0.1", "lm1b/en/1.0.0", "downloads/extracted/TAR.lm1b/3.0.1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").touch()
    (tmp_path / "cifar10" / "incomplete.J4X_3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "incomplete.J4X_3.0.2" / "dataset_info.json").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, out = look(capsys)
    assert (status, "PROBLEM" in out) in {(0, False), (1, True)}
    for text in (
        "Python 3.",
        "jaxlib",
        "device    0: ",
        "cache     ",
        f"prepared in {tmp_path}: lm1b, mnist\n",
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
        (without_devices(), "JAX has no devices: JAX_PLATFORMS=cpu finds none"),
        (without_devices("cannot\nopen"), "JAX has no devices: cannot open"),
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
