"""Errors that a person sees.

The tree, with the stable code of each class (codes are part of the HTTP and ``--json`` contract)::

    SealrigError                    internal
    ├── UsageError                  usage                  the command line or a setting is wrong (exit 2)
    ├── InputError                  bad-input              a file or value from outside is not acceptable
    │   ├── JobError                bad-job                a job file or signed job is not acceptable
    │   └── LimitError              limit-exceeded         a named bound was crossed
    ├── BundleError                 bad-bundle             a bundle is damaged, foreign or not a bundle
    │   ├── BundleTamperedError     bundle-tampered        an authenticated part does not verify
    │   ├── WrongKeyError           wrong-key              none of the recipients is this identity
    │   └── UnsafePathError         unsafe-path            an entry would leave the destination
    ├── KeyFileError                bad-key-file           an identity file is missing, damaged or too open
    ├── StateError                  invalid-state          the thing is not in a state that allows this
    ├── NotFoundError               not-found              no such thing, or it belongs to another tenant
    ├── AccessError                 forbidden              the role or tenant does not allow this
    │   └── AuthenticationError     unauthenticated        no token, or one that is unknown, revoked or expired
    ├── DeniedError                 denied                 a policy said no; every reason is in the details
    ├── ReleaseError                release-refused        the release agent will not hand out a key
    ├── ServerError                 server-unreachable     the control plane did not answer, or not as agreed
    ├── EngineError                 engine                 Docker did not answer or refused
    │   ├── DriftError              launch-drift           the engine made something other than the plan
    │   └── ImageError              image-unavailable      the image is not on this node
    ├── ScratchError                scratch                scratch space could not be made or destroyed
    ├── WipeError                   wipe-unproven          a wipe step could not be proven
    └── WaitError                   timed-out              what was waited for did not happen in time (exit 124)

Each carries, where it applies, the rule, the value seen, the value wanted and the fix, so that a refusal can be acted on.
Messages and details never contain key material or plaintext.
"""

from __future__ import annotations

from typing import ClassVar


class SealrigError(Exception):
    """Base of every error that Sealrig raises on purpose.

    ``code`` is stable; ``message`` is for people; ``details`` holds JSON values, usually among
    ``rule``, ``seen``, ``wanted``, ``fix``.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = details


class UsageError(SealrigError):
    """The command line, an environment variable or a configuration file is wrong."""

    code = "usage"
    http_status = 400


class InputError(SealrigError):
    """Something from outside is not acceptable as it is."""

    code = "bad-input"
    http_status = 422


class JobError(InputError):
    """A job file, or a signed job, is not acceptable."""

    code = "bad-job"


class LimitError(InputError):
    """A named bound on untrusted input was crossed."""

    code = "limit-exceeded"
    http_status = 413


class BundleError(SealrigError):
    """A bundle is damaged, from a foreign format, or not a bundle."""

    code = "bad-bundle"
    http_status = 422


class BundleTamperedError(BundleError):
    """An authenticated part of a bundle does not verify."""

    code = "bundle-tampered"


class WrongKeyError(BundleError):
    """None of a bundle's recipients is the identity at hand; another identity may fit."""

    code = "wrong-key"


class UnsafePathError(BundleError):
    """An entry of a bundle would be written outside the destination."""

    code = "unsafe-path"


class KeyFileError(SealrigError):
    """An identity file is missing, damaged, too widely readable, or needs a passphrase."""

    code = "bad-key-file"
    http_status = 422


class StateError(SealrigError):
    """The thing is not in a state that allows this."""

    code = "invalid-state"
    http_status = 409


class NotFoundError(SealrigError):
    """There is no such thing, or it belongs to another tenant (which is not told apart)."""

    code = "not-found"
    http_status = 404


class AccessError(SealrigError):
    """The role or tenant of the token does not allow this."""

    code = "forbidden"
    http_status = 403


class AuthenticationError(AccessError):
    """There is no token, or it is unknown, revoked or expired."""

    code = "unauthenticated"
    http_status = 401


class DeniedError(SealrigError):
    """A policy said no. ``details['reasons']`` lists every reason."""

    code = "denied"
    http_status = 403


class ReleaseError(SealrigError):
    """The release agent will not hand out a key. ``details['steps']`` lists what was checked."""

    code = "release-refused"
    http_status = 409


class ServerError(SealrigError):
    """The control plane did not answer, or not as agreed."""

    code = "server-unreachable"
    http_status = 502


class EngineError(SealrigError):
    """Docker did not answer or refused."""

    code = "engine"
    http_status = 502


class DriftError(EngineError):
    """The container that the engine made differs from the launch plan."""

    code = "launch-drift"


class ImageError(EngineError):
    """The image that the plan names is not on this node."""

    code = "image-unavailable"


class ScratchError(SealrigError):
    """Scratch space could not be made, or could not be destroyed with proof."""

    code = "scratch"


class WipeError(SealrigError):
    """A step of the wipe could not be proven."""

    code = "wipe-unproven"


class WaitError(SealrigError):
    """What was waited for did not happen within the time that was given."""

    code = "timed-out"
    http_status = 504
