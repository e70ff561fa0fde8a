"""A home: the one folder that holds everything when no other engine is named."""

import json
from dataclasses import dataclass
from pathlib import Path

from loopwright.kernel.errors import BadInput, Unavailable


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under one root. Making a Home does no I/O; `create` does."""

    root: Path

    @classmethod
    def at(cls, path: Path | str) -> "Home":
        """A home at `path` ("~" allowed), absolute; reads and writes nothing."""
        return cls(Path(path).expanduser().absolute())

    @property
    def config(self) -> Path:
        return self.root / "home.json"

    @property
    def ledger_url(self) -> str:
        """What home.json names under "ledger_url", else SQLite in this folder."""
        return str(self._settings().get("ledger_url") or f"sqlite:///{self.root / 'ledger.db'}")

    def setting(self, name: str) -> object:
        """What home.json says under `name`; None when nothing. Raises BadInput for a file that is no JSON object."""
        return self._settings().get(name)

    @property
    def openlineage(self) -> dict[str, object]:
        """What home.json names under "openlineage": url, endpoint, namespace, api_key_env. Empty when nothing."""
        named = self._settings().get("openlineage") or {}
        if not isinstance(named, dict):
            raise BadInput(
                "`openlineage` is not an object", where=str(self.config), wanted='{"url": "http://…"}'
            )
        return named

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        """The control plane's key: seals bundles, signs approvals and route tables."""
        return self.keys / "control.key"

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    @property
    def lake_url(self) -> str:
        """Where tables lie: what home.json names under "lake_url" (a folder or s3://BUCKET/PREFIX), else `lake`."""
        return str(self._settings().get("lake_url") or self.lake)

    @property
    def online_url(self) -> str:
        """The online store: what home.json names under "online_url" (redis://…), else SQLite in this folder."""
        return str(self._settings().get("online_url") or f"sqlite:///{self.root / 'online.db'}")

    @property
    def data_engine(self) -> str:
        """What runs checks over raw data: what home.json names under "data_engine" (spark://…), else duckdb."""
        return str(self._settings().get("data_engine") or "duckdb")

    @property
    def staging(self) -> Path:
        """Where sources are unpacked while they land; may be deleted when nothing lands."""
        return self.cache / "staging"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifact root."""
        return self.root / "artifacts"

    @property
    def bundles(self) -> Path:
        return self.artifacts / "bundles"

    @property
    def frames(self) -> Path:
        """Feature frames by what they were built from; may be deleted at any time."""
        return self.cache / "frames"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def explanations(self) -> Path:
        """Why logged predictions came out as they did, of models that ask for it."""
        return self.root / "explanations"

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def serving(self) -> Path:
        return self.root / "serving"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def anchors(self) -> Path:
        """Signed statements of where the audit log stood, for whoever copies them elsewhere."""
        return self.root / "anchors"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def exists(self) -> bool:
        """Whether `create` has been here."""
        return self.keys.is_dir()

    def create(self) -> "Home":
        """Make the folders; is idempotent. A new home is its owner's only: it holds data, and who may do what.

        Raises Unavailable when the disk is full or read-only.
        """
        folders = (
            self.lake, self.bundles, self.predictions, self.labels, self.serving, self.logs, self.cache,
        )  # fmt: skip
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            self.keys.mkdir(mode=0o700, exist_ok=True)
            self.keys.chmod(0o700)
        except OSError as error:
            raise Unavailable(
                f"cannot create a home here ({error.strerror or error})",
                where=str(self.root),
                next="Name a writable folder: --home DIR or LOOPWRIGHT_HOME.",
            ) from error
        return self

    def _settings(self) -> dict[str, object]:
        try:
            text = self.config.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unavailable(f"cannot read ({error.strerror or error})", where=str(self.config)) from error
        try:
            settings = json.loads(text)
        except ValueError as error:
            raise BadInput(f"not JSON ({error})", where=str(self.config)) from None
        if not isinstance(settings, dict):
            raise BadInput(
                "not a JSON object", where=str(self.config), wanted='{"ledger_url": "postgresql://…"}'
            )
        return settings
