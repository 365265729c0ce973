"""Options whose defaults come from environment variables."""

from __future__ import annotations

import pytest
from traitlets import Integer, List, Set, TraitError, Unicode
from traitlets.config import Config

from enterprise_gateway.core.envvars import NOT_READ, EnvVar, Number, comma_list, optional_text
from enterprise_gateway.core.options import EnvironmentDefaults

SIZE = EnvVar(("HOUSE_SIZE", "HUT_SIZE", "TENT_SIZE"), Number(int, 1, 100), 7, "How large it is.")
NAME = EnvVar(("HOUSE_NAME",), optional_text, None, "What it is called.")
GUESTS = EnvVar(("HOUSE_GUESTS",), comma_list, ("al", "bo"), "Who comes.")
ROOMS = EnvVar(("HOUSE_ROOMS",), comma_list, (), "What is in it.", is_read=False)


class House(EnvironmentDefaults):
    """Somebody's options."""

    size = Integer(7, help="How large it is.").tag(config=True, env=SIZE)
    name = Unicode(None, allow_none=True, help="What it is called.").tag(config=True, env=NAME)
    guests = Set(help="Who comes.").tag(config=True, env=GUESTS)
    rooms = List(help="What is in it.").tag(config=True, env=ROOMS)
    colour = Unicode("red", help="Not from the environment.").tag(config=True)


class Villa(House):
    """A house with one option more."""

    garden = Unicode("", help="What the garden is called.").tag(config=True, env=NAME)


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({}, 7),
        ({"HOUSE_SIZE": "12"}, 12),
        ({"HUT_SIZE": "3"}, 3),
        ({"TENT_SIZE": "2"}, 2),
        ({"TENT_SIZE": "2", "HUT_SIZE": "3"}, 3),
        ({"TENT_SIZE": "2", "HOUSE_SIZE": "12"}, 12),
        ({"HOUSE_SIZE": ""}, 7),
        ({"HOUSE_SIZE": " ", "HUT_SIZE": "3"}, 3),
        ({"HOUSE_SIZES": "12", "house_size": "12"}, 7),
    ],
)
def test_a_default_comes_from_the_first_name_that_is_set(
    variables: dict[str, str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Legacy names come later; a blank text for a number is none."""
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    assert House().size == size


def test_a_default_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at import, nor when the object is made; from then on the option stays as it is."""
    house = House()
    monkeypatch.setenv("HOUSE_SIZE", "12")
    assert house.size == 12
    monkeypatch.setenv("HOUSE_SIZE", "13")
    assert (house.size, House().size) == (12, 13)


@pytest.mark.parametrize(
    ("text", "guests", "rooms"),
    [
        (None, {"al", "bo"}, []),
        ("", set(), []),
        (" , ", set(), []),
        ("zoë", {"zoë"}, ["zoë"]),
        ("bo, al,bo", {"al", "bo"}, ["bo", "al", "bo"]),
    ],
)
def test_a_comma_text_becomes_what_the_option_holds(
    text: str | None, guests: set[str], rooms: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set for a set, a list in its order for a list; a text that lists nothing is not the default."""
    if text is not None:
        monkeypatch.setenv("HOUSE_GUESTS", text)
        monkeypatch.setenv("HOUSE_ROOMS", text)
    assert House().guests == guests
    assert House().rooms == rooms


def test_a_changed_default_stays_with_its_object() -> None:
    """What is added to one object's list is not in the next one's."""
    House().guests.add("carol")
    House().rooms.append("kitchen")
    assert House().guests == {"al", "bo"}
    assert House().rooms == []
    assert House.guests_default_value == {"al", "bo"}


def test_what_is_configured_or_assigned_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is a default and nothing more; one that nobody asks for need not be right."""
    monkeypatch.setenv("HOUSE_SIZE", "many")
    assert House(config=Config({"House": {"size": 3}})).size == 3
    assert House(size=4).size == 4
    house = House()
    house.size = 5
    assert house.size == 5


@pytest.mark.parametrize("text", ["many", "0", "101", "1.5"])
def test_a_text_that_cannot_be_used_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its variable, under the name that was set."""
    monkeypatch.setenv("HUT_SIZE", text)
    with pytest.raises(ValueError, match=f"^HUT_SIZE='{text}': expected a whole number from 1 to 100$"):
        _ = House().size


def test_a_default_must_suit_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the variable gives is checked like anything that is assigned."""

    class Cottage(EnvironmentDefaults):
        size = Integer(1, max=10).tag(env=SIZE)

    monkeypatch.setenv("HOUSE_SIZE", "50")
    with pytest.raises(TraitError):
        _ = Cottage().size


def test_the_class_tells_the_variable_and_the_built_in_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is the built-in one whatever the environment says; other options have no such attributes."""
    monkeypatch.setenv("HOUSE_SIZE", "12")
    assert (House.size_env, House.size_default_value) == ("HOUSE_SIZE", 7)
    assert (House.name_env, House.name_default_value) == ("HOUSE_NAME", None)
    assert House.rooms_default_value == []
    assert not hasattr(House, "colour_env")
    assert not hasattr(House, "colour_default_value")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("size", "How large it is.\n\nEnvironment: HOUSE_SIZE or, for compatibility, HUT_SIZE, TENT_SIZE."),
        ("name", "What it is called.\n\nEnvironment: HOUSE_NAME."),
        ("rooms", f"What is in it. {NOT_READ}\n\nEnvironment: HOUSE_ROOMS."),
        ("colour", "Not from the environment."),
    ],
)
def test_the_help_names_the_variable(option: str, text: str) -> None:
    """All its names, and whether this version reads it; once, for subclasses as well."""
    assert House.class_traits()[option].help == text
    assert Villa.class_traits()[option].help == text


def test_subclasses_have_the_options_of_their_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their variables, and with variables for their own."""
    monkeypatch.setenv("HOUSE_SIZE", "12")
    monkeypatch.setenv("HOUSE_NAME", "Eden")
    villa = Villa()
    assert (villa.size, villa.name, villa.garden, villa.colour) == (12, "Eden", "Eden", "red")
    assert (Villa.size_env, Villa.garden_env) == ("HOUSE_SIZE", "HOUSE_NAME")
