"""What a build is told of this machine's pip."""

from pathlib import Path

from hack.cluster import pipconfig


def test_a_machine_without_settings_has_nothing_to_tell() -> None:
    settings = pipconfig.read("", {})

    assert settings == {}
    assert pipconfig.paths(settings) == []
    assert pipconfig.write(settings) == "[global]\n"


def test_the_environment_wins_over_the_file() -> None:
    listing = "global.index-url='https://one.example/simple'\n:env:.index-url='https://two.example/simple'\n"

    assert pipconfig.read(listing, {}) == {"index-url": "https://two.example/simple"}


def test_settings_of_single_commands_are_left_out() -> None:
    assert pipconfig.read("install.user='true'\n", {}) == {}


def test_several_values_stay_several() -> None:
    settings = pipconfig.read("global.find-links='/one\\n/two'\n", {})

    assert pipconfig.write(settings) == "[global]\nfind-links = /one /two\n"


def test_the_authority_of_the_environment_is_taken_where_pip_names_none() -> None:
    environment = {"SSL_CERT_FILE": "/etc/one.pem"}

    assert pipconfig.read("", environment) == {"cert": "/etc/one.pem"}
    assert pipconfig.read("global.cert='/etc/two.pem'\n", environment) == {"cert": "/etc/two.pem"}


def test_folders_that_are_named_are_shown_to_the_build(tmp_path: Path) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "mirror" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    settings = {
        "find-links": f"{wheels} {tmp_path / 'absent'}",
        "extra-index-url": f"{index.as_uri()} https://one.example/simple",
        "timeout": "60",
    }

    assert pipconfig.paths(settings) == [index.parent, wheels]
