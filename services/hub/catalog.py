"""The catalog as the hub serves it, and the weights that ship with the platform as its objects."""

from pathlib import Path
from typing import Final

from chassis import telemetry
from hub.domain.models import Model, ModelFile, catalog_slug
from hub.domain.quota import Quota
from hub.store import Store
from lexicon.faults import Fault, FaultCode
from lexicon.names import ModelName
from modelspec.catalog import Catalog, CatalogModel
from objects.local_files import describe
from objects.store import ObjectStore

# Data and weights only: code, and files that are only for people, are not stored.
_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})

log = telemetry.logger(__name__)


def models_of(catalog: Catalog) -> tuple[Model, ...]:
    """The catalog's models with their resource names.

    Raises:
        Fault: CONFIG_INVALID when two ids would have the same resource name.
    """
    models = tuple(_model(row) for row in catalog.models.values())
    by_name: dict[str, str] = {}
    for model in models:
        other = by_name.setdefault(str(model.name), model.model_id)
        if other != model.model_id:
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"The catalog's models {other} and {model.model_id} have the same name.",
            )
    return models


def quotas_of(catalog: Catalog) -> dict[str, Quota]:
    """What a project may keep, by plan."""
    return {
        plan.plan: Quota(
            dataset_bytes=plan.dataset_quota_bytes, artifact_bytes=plan.artifact_quota_bytes
        )
        for plan in catalog.plans.values()
    }


async def seed_weights(catalog: Catalog, store: Store, objects: ObjectStore) -> None:
    """Puts the files of models that ship with the platform into the object store.

    Objects are keyed by their digest, so that a second start finds them. A full store must not
    prevent the start, since only a running hub can delete objects: the model then keeps its
    previous files, or has none.
    """
    for row in catalog.models.values():
        if row.local_path is None:
            continue
        try:
            await _seed(row.model_id, _files_of(row.local_path), store, objects)
        except Fault as fault:
            if fault.code is not FaultCode.STORAGE_FULL:
                raise
            text = "catalog weights do not fit into the store"
            log.exception(text, model=row.model_id)


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)


async def _seed(model_id: str, paths: list[Path], store: Store, objects: ObjectStore) -> None:
    files = []
    for path in paths:
        local = describe(path)
        key = f"models/{local.sha256}"
        if await objects.head(key) is None:
            await objects.put(key, path, size_limit=local.size_bytes)
        files.append(
            ModelFile(
                path=path.name,
                object_key=key,
                size_bytes=local.size_bytes,
                sha256=local.sha256,
            )
        )
    async with store.unit() as unit:
        await unit.put_catalog_files(model_id, files)
    log.info("catalog weights are in the store", model=model_id, files=len(files))


def _model(row: CatalogModel) -> Model:
    return Model(
        name=ModelName(model=catalog_slug(row.model_id)),
        model_id=row.model_id,
        revision=row.revision,
        family=row.family,
        verified=row.verified,
        architecture=row.architecture,
        parameter_count=row.parameter_count,
        context_tokens=row.context_tokens,
        license=row.license,
        gated=row.gated,
    )
