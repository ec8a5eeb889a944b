"""What lives as long as one serving process: settings, metrics, and the model once it is loaded.

A process whose model cannot be served stays alive and says why at /readyz: an operator reads one sentence there and in
the log, instead of a restart loop.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import NamedTuple

from service.access.keys import Keys, KeysError, NoKeys
from service.access.oidc import AccessTokens
from service.access.settings import OidcSettings
from service.api.audit import Audit, open_audit
from service.api.errors import NotReadyError
from service.api.loading import Following, load_model, told
from service.api.logs import configure_logging
from service.api.metric_files import forget_this_process
from service.api.metrics import Metrics
from service.api.model import Model
from service.api.outcomes import OutcomeWatch
from service.api.settings import (
    Settings,
    is_set,
    read_clinical_settings,
    read_oidc_settings,
    read_settings,
    unknown_variables,
)
from service.api.shadow import Shadow
from service.api.tracing import Tracing, open_tracing
from service.audit.entries import AuditError
from service.bundle.choose import Found, find_bundle
from service.bundle.errors import BundleError
from service.bundle.predictor import num_cuda_devices
from service.clinical.settings import ClinicalSettings

logger = logging.getLogger("i2moe.runtime")

LOADING = "the model is still being loaded"
CLOSING = "the service is shutting down"


class Followed(NamedTuple):
    """What became of looking at the bundle."""

    changed: bool
    problem: str | None  # why the bundle that is there is not served


class Runtime:
    """One serving process. `open` loads the model, `close` answers what was accepted."""

    def __init__(
        self,
        settings: Settings,
        *,
        clinical: ClinicalSettings | None = None,
        oidc: OidcSettings | None = None,
        tracing: Tracing | None = None,
        problem: str | None = None,
    ) -> None:
        """`problem` says why these settings cannot be served with; the model is then never loaded.

        Without `oidc` no access token is asked for; with one that names no issuer nobody's is trusted.
        """
        self.settings = settings
        self.clinical = ClinicalSettings.model_construct() if clinical is None else clinical
        self.metrics = Metrics()
        self.tracing = tracing
        self.reason: str | None = LOADING
        self._problem = problem
        self._model: Model | None = None
        self._retiring: list[tuple[Model, asyncio.Task[None]]] = []
        self._bundles = Following(find=self._find, load=self._load)
        self._watching: asyncio.Task[None] | None = None
        self.audit: Audit | None = None
        self._outcomes: OutcomeWatch | None = None
        self.shadow = None if settings.shadow_bundle is None else Shadow(settings, self.metrics, path=settings.shadow_bundle)
        self.keys: Keys | NoKeys | None = None if settings.api_keys is None else self._read_keys(settings.api_keys)
        self.oidc = oidc
        self.tokens: AccessTokens | None = None if oidc is None else self._open_tokens(oidc)

    def _read_keys(self, path: Path) -> Keys | NoKeys:
        """Where they cannot be read nobody is let in, and the service says why at /readyz."""
        try:
            return Keys(path)
        except KeysError as error:
            self._problem = self._problem or str(error)
            return NoKeys()

    def _open_tokens(self, oidc: OidcSettings) -> AccessTokens:
        """Where an issuer's file cannot be read nobody is let in with its tokens, and the service says why at /readyz."""
        tokens = AccessTokens(oidc)
        self._problem = self._problem or tokens.read_files()
        return tokens

    @classmethod
    def from_environment(cls) -> "Runtime":
        """The runtime that the I2MOE_* variables describe."""
        settings, unread = read_settings()
        clinical, clinical_problem = read_clinical_settings()
        oidc, oidc_problem = read_oidc_settings()
        configure_logging(settings.log_level, settings.log_format)
        for name in unknown_variables(os.environ):
            logger.warning("%s is not a setting of this service and is ignored", name)
        tracing, missing = open_tracing(settings.traces)
        if missing is not None and settings.traces is None:  # a platform set OTEL_* for all it runs
            logger.warning("no traces are exported: %s", missing)
            missing = None
        problem = unread or clinical_problem or oidc_problem or missing
        runtime = cls(settings, clinical=clinical, oidc=oidc, tracing=tracing, problem=problem)
        if unread is not None and is_set("API_KEYS", os.environ):  # whoever asked for keys has not asked for an open service
            runtime.keys = NoKeys()
        return runtime

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return self.reason is None

    @property
    def model(self) -> Model | None:
        """The model, where one is ready."""
        return self._model if self.is_ready else None

    def require_model(self) -> Model:
        """The model. Raises `NotReadyError` saying why there is none."""
        if self._model is None or self.reason is not None:
            raise NotReadyError(f"no model is ready: {self.reason}")
        return self._model

    @property
    def is_full(self) -> bool:
        """Whether not one sample more may wait to be scored."""
        return self._model is not None and self._model.batcher.is_full

    async def open(self) -> None:
        """Load, replay, warm up, then be ready; or stay unready for a reason. Raises nothing."""
        self.metrics.ready.set(0)
        self.metrics.queue_limit.set(self.settings.queue_max)
        self.metrics.gpus.set(num_cuda_devices())
        try:
            if self._problem:
                raise BundleError(self._problem)
            store = await asyncio.to_thread(open_audit, self.settings)
        except (BundleError, AuditError, ModuleNotFoundError) as error:
            self._stay_unready(str(error))
            return
        self.audit = None if store is None else Audit(store, self.settings, self.metrics)
        if self.tokens is not None:
            self.tokens.prepare()
        await self.follow()
        if self.shadow is not None:
            self.shadow.open()
        if self.settings.watch_s:
            self._watching = asyncio.create_task(self._watch())

    async def follow(self) -> Followed:
        """Serve the bundle that is there now, if it is another one than the one served; the old one answers what it has begun.

        Where the new one cannot be served, the old one still is, and the new one is not tried again before it changes.
        """
        looked = await self._bundles.look()
        if looked.loaded is not None:
            self._take_over(looked.loaded, looked.load_s)
        elif looked.problem is not None and looked.is_news:
            self._refuse(looked.problem)
        return Followed(changed=looked.loaded is not None, problem=looked.problem)

    def _find(self) -> Found:
        if self.settings.bundle is None:
            raise BundleError("I2MOE_BUNDLE is not set; it must name the folder of the bundle to serve")
        return find_bundle(self.settings.bundle, self.settings.bundle_version)

    async def _load(self, path: Path) -> Model:
        bundle, predictor = await asyncio.to_thread(load_model, path, self.settings)
        self.metrics.begin(bundle.manifest, await asyncio.to_thread(bundle.reference))
        return Model.made_of(bundle, predictor, self.settings, self.metrics)

    def _refuse(self, reason: str) -> None:
        self.metrics.reloads.labels("failed").inc()
        if self._model is None:
            self._stay_unready(reason)
        else:
            logger.error("the bundle that is there now is not served: %s", reason)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.watch_s)
            await self.follow()

    def _stay_unready(self, reason: str) -> None:
        self.reason = reason
        logger.error("not ready: %s", self.reason)

    def _take_over(self, model: Model, load_s: float) -> None:
        """Every request that begins from now on is this model's."""
        before, self._model = self._model, model
        if self.reason != CLOSING:
            self.reason = None
            self.metrics.ready.set(1)
        self.metrics.model_info.labels(**model.info).set(1)
        if self.shadow is not None:
            self.shadow.compare_with(model.manifest)
        if self._outcomes is not None:
            self._outcomes.model_name = model.manifest.name
        elif self.audit is not None:
            self._outcomes = OutcomeWatch(self.audit.store, self.settings, self.metrics, model_name=model.manifest.name)
        if before is not None:
            self.metrics.reloads.labels("done").inc()
            self._retiring.append((before, asyncio.create_task(self._retire(before))))
            logger.info("took over after %.2f s: %s", load_s, told(model.info))
            return
        settings = " ".join(f"{name}={value}" for name, value in self.settings.model_dump().items())
        logger.info("ready after %.2f s: %s; settings %s", load_s, told(model.info), settings)

    async def _retire(self, model: Model) -> None:
        """No request of an old model lives longer than its deadline."""
        await asyncio.sleep(self.settings.timeout_s + 1)
        await model.close()
        self._retiring = [(old, task) for old, task in self._retiring if old is not model]
        if self._model is None or self._model.info != model.info:
            self.metrics.model_info.labels(**model.info).set(0)

    async def close(self) -> None:
        """Take nothing new, answer everything that was accepted."""
        self.reason = CLOSING
        self.metrics.ready.set(0)
        if self.shadow is not None:
            await self.shadow.close()
        await self._close_models()
        for watched in (self._outcomes, self.audit):
            if watched is not None:
                await watched.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        forget_this_process()
        logger.info("closed")

    async def _close_models(self) -> None:
        for task in (self._watching, *(task for _, task in self._retiring)):
            if task is not None:
                task.cancel()
        for model in (self._model, *(model for model, _ in self._retiring)):
            if model is not None:
                await model.close()
