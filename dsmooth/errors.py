"""An error that says which argument it is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

# The text of an argument, and of a value to give it (None: any).
Spell = Callable[[str, object], str]


def in_python(name: str, value: object = None) -> str:
    """An argument as Python has it, in backquotes."""
    return f"`{name}`" if value is None else f"`{name}={value}`"


class SettingError(ValueError):
    """An argument that does not fit.

    arguments: its name in Python, or the names of several that contradict each other; () where it
    is about none. remedy: arguments that help, with a value or None for any. The text is
    "`argument` message `remedy=value`"; `text` spells the arguments as options of a command.
    """

    def __init__(self, arguments: str | Sequence[str], message: str, **remedy: object) -> None:
        self.arguments = (arguments,) if isinstance(arguments, str) else tuple(arguments)
        self.message, self.remedy = message, remedy
        super().__init__(self.text(in_python))

    def __reduce__(self) -> tuple[Callable[[], SettingError], tuple[()]]:
        """As another process gets it, by pickle."""
        return partial(SettingError, self.arguments, self.message, **self.remedy), ()

    def text(self, spell: Spell) -> str:
        """The whole message, its arguments as `spell` writes them."""
        subject = " and ".join(spell(name, None) for name in self.arguments)
        remedy = " or ".join(spell(name, value) for name, value in self.remedy.items())
        return " ".join(filter(None, (subject, self.message, remedy)))
