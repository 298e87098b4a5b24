"""Problems small enough to be solved exactly: what every estimator and every bound is measured against."""
