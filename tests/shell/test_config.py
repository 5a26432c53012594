"""Configuration: where a value comes from, which one wins, and what is refused how."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.config import Config, ConfigError, describe, load, reloaded, settings, show

NOTHING: dict[str, str] = {}


def write(path: Path, text: str) -> Path:
    file = path / "pointsman.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_are_loopback_and_sqlite() -> None:
    config = load(environment=NOTHING)

    assert config.bind == ("tcp://127.0.0.1:5570",)
    assert config.store == "sqlite:pointsman.db"
    assert config.max_message == 16 * 1024 * 1024
    assert config.heartbeat_limit == 10.0


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = write(tmp_path, "grace = 1\ndrain = 1\nretention = 1\n")
    environment = {"POINTSMAN_GRACE": "2", "POINTSMAN_DRAIN": "2"}

    config = load({"grace": "3"}, file=file, environment=environment)

    assert (config.grace, config.drain, config.retention) == (3, 2, 1)
    assert config.heartbeat_limit == 10


def test_environment_can_name_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'store = "memory"\n')

    config = load(environment={"POINTSMAN_CONFIG": str(file)})

    assert config.store == "memory"


def test_file_given_by_flag_wins_over_the_environments(tmp_path: Path) -> None:
    file = write(tmp_path, 'store = "memory"\n')

    config = load(file=file, environment={"POINTSMAN_CONFIG": "/no/such/file"})

    assert config.store == "memory"


def test_variable_that_is_empty_counts_as_not_set() -> None:
    config = load(environment={"POINTSMAN_STORE": "", "POINTSMAN_CONFIG": ""})

    assert config == Config()


def test_flag_that_was_not_given_changes_nothing() -> None:
    assert load({"grace": None, "bind": ()}, environment=NOTHING) == Config()


def test_bind_takes_several_endpoints(tmp_path: Path) -> None:
    both = ("tcp://127.0.0.1:1", "ipc:///tmp/p.sock")

    by_variable = load(environment={"POINTSMAN_BIND": "tcp://127.0.0.1:1, ipc:///tmp/p.sock"})
    by_flags = load({"bind": both}, environment=NOTHING)
    by_file = load(file=write(tmp_path, f"bind = {list(both)}"), environment=NOTHING)

    assert by_variable.bind == by_flags.bind == by_file.bind == both


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("10s", 10),
        ("5m", 300),
        ("2h", 7200),
        ("7d", 604800),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert load({"retention": text}, environment=NOTHING).retention == seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("16MiB", 16 * 1024**2),
        ("16 mib", 16 * 1024**2),
        ("1.5KiB", 1536),
        ("2MB", 2_000_000),
        ("8_192", 8192),
    ],
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    assert load({"max_message": text}, environment=NOTHING).max_message == size_bytes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heartbeat_limit", "0"),
        ("heartbeat_limit", "-1"),
        ("heartbeat_limit", "nan"),
        ("heartbeat_limit", "inf"),
        ("heartbeat_limit", "5 parsecs"),
        ("heartbeat_limit", "1" * 5000),
        ("heartbeat_limit", "٣"),
        ("grace", ""),
        ("max_jobs", "0"),
        ("max_jobs", "1.5"),
        ("max_jobs", "many"),
        ("max_jobs", "10s"),
        ("max_message", "1"),
        ("max_message", "16MiBs"),
        ("max_message", "1000.5"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("store", "sqlite"),
        ("store", "sqlite:"),
        ("store", "sqlite::memory:"),
        ("store", "mysql:x"),
        ("bind", "127.0.0.1:5570"),
        ("bind", "tcp://127.0.0.1"),
        ("bind", "tcp://127.0.0.1:65536"),
        ("bind", "tcp://:5570"),
        ("bind", "udp://127.0.0.1:5570"),
        ("bind", "ipc://"),
        ("bind", "ipc:///" + "x" * 200),
        ("bind", "tcp://127.0.0.1:1,tcp://127.0.0.1:1"),
        ("bind", ","),
    ],
)
def test_wrong_value_is_refused_by_name_source_and_value(name: str, value: str) -> None:
    variable = f"POINTSMAN_{name.upper()}"
    with pytest.raises(ConfigError) as by_flag:
        load({name: value}, environment=NOTHING)

    assert f"{name} (flag --{name.replace('_', '-')})" in str(by_flag.value)
    assert repr(value) in str(by_flag.value)
    assert "it must be" in str(by_flag.value)
    if value:
        with pytest.raises(ConfigError, match=rf"{name} \(environment variable {variable}\)"):
            load(environment={variable: value})


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("grace = true", "grace"),
        ("grace = [1]", "grace"),
        ("grace = inf", "grace"),
        ("max_jobs = 1e400", "max_jobs"),
        ("store = 5", "store"),
        ("bind = [5570]", "bind"),
        ("bind = 5570", "bind"),
        ("bind = []", "bind"),
        ("log_level = 1", "log_level"),
        ("grace = 2020-01-01", "grace"),
        ("[grace]\nx = 1", "grace"),
    ],
)
def test_wrong_type_in_the_file_is_refused_by_name_and_file(
    tmp_path: Path, line: str, name: str
) -> None:
    file = write(tmp_path, line)

    with pytest.raises(ConfigError) as refusal:
        load(file=file, environment=NOTHING)

    assert f"{name} (file {file})" in str(refusal.value)


def test_unknown_key_in_the_file_is_refused_with_the_name_that_was_meant(tmp_path: Path) -> None:
    file = write(tmp_path, "hartbeat_limit = 5")

    with pytest.raises(ConfigError, match="hartbeat_limit; did you mean heartbeat_limit"):
        load(file=file, environment=NOTHING)


def test_slip_in_a_variables_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean POINTSMAN_HEARTBEAT_LIMIT"):
        load(environment={"POINTSMAN_HEARTBEATLIMIT": "5"})


def test_variables_that_are_not_settings_are_left_alone() -> None:
    environment = {
        "POINTSMAN_BROKER": "tcp://127.0.0.1:5570",
        "POINTSMAN_KEY": "/etc/shop/shop.key",
        "POINTSMAN_BROKER_KEY": "/etc/shop/broker.pub",
        "POINTSMAN_PORT": "tcp://10.0.0.1:5570",
        "POINTSMAN_SERVICE_HOST": "10.0.0.1",
    }

    assert load(environment=environment) == Config()


def test_key_of_the_broker_has_a_variable_of_its_own() -> None:
    clients = {"POINTSMAN_KEY": "/etc/shop/shop.key"}

    config = load(environment=clients | {"POINTSMAN_SERVER_KEY": "keys/broker.key"})

    assert config.key == "keys/broker.key"
    with pytest.raises(ConfigError, match=r"key \(environment variable POINTSMAN_SERVER_KEY\)"):
        load(environment={"POINTSMAN_SERVER_KEY": "\0"})
    with pytest.raises(ConfigError, match="did you mean POINTSMAN_SERVER_KEY"):
        load(environment={"POINTSMAN_SERVERKEY": "keys/broker.key"})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*No such file"):
        load(file=tmp_path / "nowhere.toml", environment=NOTHING)


@pytest.mark.parametrize("content", [b"grace = ", b"\xff\xfe", b"grace 5", b"a=" + b"[" * 5000])
def test_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "pointsman.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=r"pointsman\.toml is not TOML"):
        load(file=file, environment=NOTHING)


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "0x" + "f" * 9000, "-1e400", "1e-400"])
def test_number_of_any_length_in_a_file_is_refused(tmp_path: Path, number: str) -> None:
    file = tmp_path / "pointsman.toml"
    file.write_text(f"max_jobs = {number}\n")

    with pytest.raises(ConfigError, match=r"pointsman\.toml"):
        load(file=file, environment=NOTHING)


def test_config_made_by_hand_is_checked_too() -> None:
    assert Config(max_message="1MiB").max_message == 1024**2  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"max_jobs \(argument\)"):
        Config(max_jobs=0)


def test_reload_takes_over_what_can_change_and_names_what_cannot() -> None:
    running = Config(store="memory", drain=1.0)
    new = Config(store="sqlite:x.db", drain=2.0)

    config, needs_restart = reloaded(running, new)

    assert config == dataclasses.replace(running, drain=2.0)
    assert needs_restart == ["store"]


def test_every_setting_is_documented_with_a_default_that_it_accepts() -> None:
    table = describe()

    for setting in settings():
        assert f"| `{setting.name}` |" in table
        assert setting.meaning
    assert load(show(Config()), environment=NOTHING) == Config()


@example("grace", -0.0)
@given(st.sampled_from([s.name for s in settings()]), st.text() | st.integers() | st.floats())
def test_any_value_is_taken_or_refused_and_never_crashes(name: str, value: object) -> None:
    refusal = None
    try:
        config = load({name: value}, environment=NOTHING)
    except ConfigError as error:
        refusal = str(error)

    if refusal is None:
        load(show(config), environment=NOTHING)
        assert load(dataclasses.asdict(config), environment=NOTHING) == config
    else:
        assert name in refusal
