"""What a multimodal network has to beat: LightGBM and logistic regression over all modalities side by side.

Same rows, same fitted schema, same splits as the networks; both choose on the validation rows. Neither is calibrated.
"""

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from service.bundle.features import ArrayFeature, CategoricalFeature, NumericFeature
from training.data.dataset import Dataset
from training.tasks import Classification

Matrix = NDArray[np.float32]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


def flat(dataset: Dataset, split: str) -> tuple[Matrix, NDArray[np.int64]]:
    """All modalities side by side: one (N, columns) matrix, NaN where missing."""
    arrays, target = dataset.part(split)
    return np.concatenate([arrays[name] for name in dataset.schema.names], axis=1), target


def columns_of(dataset: Dataset, *kinds: type) -> list[int]:
    """Positions in the flat matrix of the columns of features of these kinds."""
    features = [f for modality in dataset.schema.modalities for f, columns in modality.columns() for _ in range(f.width)]
    return [i for i, feature in enumerate(features) if isinstance(feature, kinds)]


def logistic_regression(dataset: Dataset, seed: int) -> Matrix:
    """Ridge, strength chosen on validation log loss.

    Numbers are median-imputed and standardised, categories one-hot, codes and texts as they are (zero where missing).
    """
    (x, y), (x_val, y_val), (x_test, _) = (flat(dataset, split) for split in ("train", "validation", "test"))
    numbers, categories = columns_of(dataset, NumericFeature, ArrayFeature), columns_of(dataset, CategoricalFeature)
    others = sorted(set(range(x.shape[1])) - {*numbers, *categories})
    frequent = SimpleImputer(strategy="most_frequent")
    prepare = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()), numbers),
            ("categories", make_pipeline(frequent, OneHotEncoder(handle_unknown="ignore")), categories),
            ("others", SimpleImputer(strategy="constant", fill_value=0.0), others),
        ]
    )
    x, x_val, x_test = prepare.fit_transform(x), prepare.transform(x_val), prepare.transform(x_test)
    models = [LogisticRegression(C=strength, max_iter=5000, random_state=seed).fit(x, y) for strength in STRENGTHS]

    def validation_loss(model: Any) -> float:
        return Classification.metrics["log_loss"](model.predict_proba(x_val), y_val, dataset.task)

    return np.asarray(min(models, key=validation_loss).predict_proba(x_test))


def gradient_boosting(dataset: Dataset, seed: int) -> Matrix:
    """LightGBM with native categories and missing values, stopped early on validation log loss."""
    (x, y), (x_val, y_val), (x_test, _) = (flat(dataset, split) for split in ("train", "validation", "test"))
    is_binary = len(dataset.task.labels) == 2
    model = lightgbm.LGBMClassifier(
        n_estimators=3000,
        learning_rate=0.02 if is_binary else 0.05,
        num_leaves=15,
        min_child_samples=40 if is_binary else 10,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=5.0,
        random_state=seed,
        verbose=-1,
    )
    model.fit(
        x,
        y,
        eval_X=x_val,
        eval_y=y_val,
        eval_metric="binary_logloss" if is_binary else "multi_logloss",
        categorical_feature=columns_of(dataset, CategoricalFeature),
        callbacks=[lightgbm.early_stopping(100, verbose=False)],
    )
    return np.asarray(model.predict_proba(x_test))


MODELS: dict[str, Callable[[Dataset, int], Matrix]] = {
    "LightGBM": gradient_boosting,
    "logistic regression": logistic_regression,
}
