"""Protobuf to domain and back."""

import dataclasses

import pytest
from google.protobuf.duration_pb2 import Duration

from lexicon.faults import Fault, FaultCode
from modelspec import recipe
from tests.unit.modelspec.published import shape
from tests.unit.validator.build import CATALOG, a_training, examined
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import spec_pb2
from validator import wire
from validator.domain import spec as words
from validator.domain.filling import fill_lora, fill_training
from validator.domain.spec import Lora, Spec, Training


def test_an_empty_spec_has_no_parts() -> None:
    assert wire.spec_from_proto(spec_pb2.RunSpec()) == Spec()


def test_an_empty_part_is_connected() -> None:
    proto = spec_pb2.RunSpec(
        training=spec_pb2.TrainingConfig(),
        lora=spec_pb2.LoraConfig(),
        attestations=spec_pb2.RightsAttestations(),
    )
    found = wire.spec_from_proto(proto)
    assert found.training == Training()
    assert found.lora == Lora()
    assert found.attestations == words.Attestations()


def test_zero_is_a_value_and_not_a_gap() -> None:
    proto = spec_pb2.RunSpec(
        lora=spec_pb2.LoraConfig(rank=0),
        training=spec_pb2.TrainingConfig(epochs=0, packing=False),
        export=spec_pb2.ExportConfig(gguf=False),
        budget=spec_pb2.BudgetConfig(max_amount_micros=0, timeout=Duration(seconds=90)),
    )
    found = wire.spec_from_proto(proto)
    assert found.lora == Lora(rank=0)
    assert found.training == Training(epochs=0, packing=False)
    assert found.export.gguf is False
    assert found.budget == words.Budget(max_amount_micros=0, timeout_seconds=90.0)


def test_a_filled_training_config_survives_the_wire() -> None:
    filled = fill_training(
        a_training(
            method=recipe.Method.SIMPO,
            validation=words.Validation(every_steps=5),
            multi_run=words.MultiRun(run_count=2, samples_per_run=9),
        ),
        tier=CATALOG.tiers["t4"],
        shape=shape(),
    )
    proto = spec_pb2.RunSpec(training=wire.training_to_proto(filled))
    assert wire.spec_from_proto(proto).training == filled
    lora = fill_lora(Lora())
    proto = spec_pb2.RunSpec(lora=wire.lora_to_proto(lora))
    assert wire.spec_from_proto(proto).lora == lora


@pytest.mark.parametrize(
    ("contract", "ours"),
    [
        (spec_pb2.Method, recipe.Method),
        (spec_pb2.Mode, words.Mode),
        (spec_pb2.Backend, recipe.Backend),
        (spec_pb2.Schedule, recipe.Schedule),
        (spec_pb2.Optimizer, recipe.Optimizer),
        (spec_pb2.Precision, recipe.Precision),
        (spec_pb2.TrainOn, recipe.TrainOn),
        (spec_pb2.Preset, words.Preset),
    ],
)
def test_every_value_of_the_contract_is_known(contract: type, ours: type) -> None:
    names = {name.split("_", contract.keys()[0].count("_"))[-1] for name in contract.keys()}  # type: ignore[attr-defined]  # noqa: SIM118
    assert names - {"UNSPECIFIED"} == set(ours.__members__)  # type: ignore[attr-defined]


def test_every_field_of_the_contract_is_ours() -> None:
    for message, kind in (
        (spec_pb2.TrainingConfig, Training),
        (spec_pb2.LoraConfig, Lora),
        (spec_pb2.RightsAttestations, words.Attestations),
        (spec_pb2.ValidationConfig, words.Validation),
        (spec_pb2.PreferenceConfig, words.Preference),
        (spec_pb2.MultiRunConfig, words.MultiRun),
        (spec_pb2.TemperatureConfig, words.Temperature),
    ):
        ours = {field.name for field in dataclasses.fields(kind)}
        assert ours == set(message.DESCRIPTOR.fields_by_name)


def test_a_value_that_the_contract_does_not_know_is_refused() -> None:
    proto = spec_pb2.RunSpec()
    proto.training.method = 99  # type: ignore[assignment]
    with pytest.raises(Fault) as caught:
        wire.spec_from_proto(proto)
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


def test_every_format_of_the_contract_is_known() -> None:
    for name in dataset_pb2.Format.keys():  # noqa: SIM118  # not a mapping
        version = dataset_pb2.DatasetVersion(name="v", format=name)
        if name == "FORMAT_UNSPECIFIED":
            with pytest.raises(Fault):
                wire.dataset_from_proto("d", version)
        else:
            assert wire.dataset_from_proto("d", version).name == "d"


def test_the_answer_goes_out_whole() -> None:
    answer = examined()
    response = wire.response_to_proto(answer, model=None, datasets=[], elapsed_seconds=0.25)
    assert response.verdict == fault_pb2.SEVERITY_UNSPECIFIED
    assert len(response.checklist) == len(answer.checklist)
    assert response.quote.maximum.currency_code == "CREDIT"
    assert response.quote.maximum.amount_micros == response.quote.maximum_minutes * 10_000
    assert response.snapshot.lora.rank == 16
    assert response.snapshot.timeout.seconds >= response.snapshot.estimated_duration.seconds
    assert response.elapsed.nanos == 250_000_000
    assert not response.HasField("model")
