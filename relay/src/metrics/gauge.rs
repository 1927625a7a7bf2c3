//! A gauge that may be absent.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::{EncodeGaugeValue, EncodeMetric, MetricEncoder},
    metrics::MetricType,
};

/// A gauge that is absent while its value is not known.
#[derive(Debug, Default)]
pub(super) struct Maybe<N>(Arc<Mutex<Option<N>>>);

impl<N> Maybe<N> {
    pub(super) fn handle(&self) -> Self {
        Maybe(Arc::clone(&self.0))
    }

    pub(super) fn set(&self, value: Option<N>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<N: EncodeGaugeValue> EncodeMetric for Maybe<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let value = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        value.as_ref().map_or(Ok(()), |value| encoder.encode_gauge(value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
