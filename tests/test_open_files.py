"""A process that may open no more files says whose the open ones are."""

import errno
import os
import resource

import pytest
from helpers_plugins import make

from altcore.errors import AltcoreError, Interrupted
from altcore.open_files import OpenFiles, lowest_free

ROOM = 100
held = []


@pytest.fixture
def room():
    """Let the process open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free() + ROOM, before[1]))
    yield
    while held:
        os.close(held.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def leak(self, step):
    """Open some files, and close none."""
    for _ in range(ROOM // 4):
        held.append(os.open(os.devnull, os.O_RDONLY))


def tidy(self, step):
    """Open some files, and close them."""
    for descriptor in [os.open(os.devnull, os.O_RDONLY) for _ in range(ROOM // 20)]:
        os.close(descriptor)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("kind", ["reporter", "intervention"])
def test_a_plugin_that_leaks_files_is_named_by_the_error_that_ends_the_run(kind, shelf, start):
    """Whoever needs the next file, be it the plugin, another one or altcore."""
    shelf.install(kind, "leaky", make({"post_step": leak}))
    shelf.install(kind, "tidy", make({"post_step": tidy}))
    said = rf": calls of {kind} leaky \(acme-leaky 1.2.3\) left \d+ of \d+ open$"
    with pytest.raises(AltcoreError, match=rf"(?i)^too many open files.*{said}"):
        start(["leaky", "tidy"], max_steps=9)


def test_if_nobody_is_known_it_is_said():
    """As of files that were open before, and of a few that were closed again."""
    files = OpenFiles()
    files.add("somebody", 1)
    said = r"whose the \d+ open files are is not known"
    with pytest.raises(AltcoreError, match=said), files.named():
        raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("error", [Interrupted("SIGTERM", 15), OSError(errno.ENOENT, "none")])
def test_other_errors_stay_as_they_are(error):
    """A signal is no failure, whatever came before it."""
    error.__context__ = OSError(errno.EMFILE, "") if isinstance(error, Interrupted) else None
    with pytest.raises(type(error)) as caught, OpenFiles().named():
        raise error
    assert caught.value is error
