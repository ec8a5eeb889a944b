from pathlib import Path

import numpy as np
import pytest

from service.bundle.features import CodesFeature, TextFeature
from service.bundle.output import Output
from service.bundle.schema import FeatureSchema, Modality
from tests.training import small_model
from tests.training.small_data import ALL_MODALITIES, recipe, write_data
from training.data.dataset import load_dataset
from training.model.build import expert_roles
from training.reference import NUM_BINS, reference, typical_record


def test_histograms_count_every_row_once() -> None:
    """Each label's probabilities and each expert's weights in 20 bins over [0, 1], and each feature's share of gaps."""
    schema, num_rows = small_model.schema(), 50
    inputs = small_model.rows(num_rows, missing_rate=0.3)
    inputs[1][:, 0] = np.nan
    output = Output(*(t.detach().numpy() for t in small_model.model()(inputs)))
    arrays = {name: x.numpy() for name, x in zip(schema.names, inputs, strict=True)}
    found = reference(output, arrays, schema, small_model.TASK, expert_roles(schema))
    assert found["num_rows"] == num_rows
    assert set(found["prediction"]) == {"alive", "dead"}
    assert set(found["expert_weights"]) == {e.name for e in expert_roles(schema)}
    for histogram in (*found["prediction"].values(), *found["expert_weights"].values()):
        assert sum(histogram["counts"]) == num_rows
        assert len(histogram["edges"]) == NUM_BINS + 1
        assert (histogram["edges"][0], histogram["edges"][-1]) == (0.0, 1.0)
    dead, bins = output.prediction[:, 1], np.linspace(0, 1, NUM_BINS + 1)
    assert found["prediction"]["dead"]["counts"] == np.histogram(dead, bins)[0].tolist()
    assert found["missing_rate"]["labs.x"] == 1.0
    assert found["missing_rate"]["labs.y"] == pytest.approx(np.isnan(arrays["labs"][:, 1]).mean())


def test_the_typical_record_is_nobodys(tmp_path: Path) -> None:
    """Medians, most common category and code, frequent words, the mean array: complete and accepted by the schema."""
    dataset = load_dataset(recipe(modalities=ALL_MODALITIES).data, write_data(tmp_path), seed=0)
    arrays, _ = dataset.part("train")
    record = typical_record(arrays, dataset.schema)
    assert record["labs"]["crea"] == pytest.approx(np.nanmedian(arrays["labs"][:, 0]), rel=1e-3)
    assert record["person"]["sex"] in {"female", "male"}
    assert record["papers"]["codes"] == ["I10"]
    assert len(record["papers"]["note"].split()) == 5
    assert np.shape(record["signal"]["signal"]) == (2, 3)
    encoded = dataset.schema.encode(record)
    assert encoded.missing == ()
    assert encoded.warnings == ()


@pytest.mark.parametrize(
    ("vocabulary", "code"),
    [(("chapter:circulatory", "charlson:heart_failure", "icd10:I10", "icd10:I50"), ["icd10:I50"]), (("chapter:eye",), None)],
)
def test_a_group_that_is_no_code_is_no_example(vocabulary: tuple[str, ...], code: list[str] | None) -> None:
    """Of grouped codes the commonest category is the example: a chapter, though commoner, could not be sent to the service."""
    feature = CodesFeature(name="codes", vocabulary=vocabulary, grouping="icd")
    schema = FeatureSchema(modalities=(Modality(name="history", features=(feature,)),))
    rows = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 1, 0]], np.float32)[:, : len(vocabulary)]
    record = typical_record({"history": rows}, schema)
    assert record == {"history": {} if code is None else {"codes": code}}
    if code is not None:
        assert schema.encode(record).warnings == ()


def test_what_was_never_seen_is_left_out() -> None:
    """A feature without a complete row has no typical value."""
    feature = TextFeature(name="note", vocabulary=("word",), idf=(1.0,))
    schema = FeatureSchema(modalities=(Modality(name="notes", features=(feature,)),))
    assert typical_record({"notes": np.full((3, 1), np.nan, np.float32)}, schema) == {"notes": {}}
