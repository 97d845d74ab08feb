package jobs

import "github.com/prometheus/client_golang/prometheus"

// metrics of the job side. Labels are our own words, never a producer's.
type metrics struct {
	published, publishFailed, swept, sealed prometheus.Counter
	paused                                  prometheus.Gauge
	delivered                               *prometheus.CounterVec
}

// Results of an attempt at a delivery.
const (
	resultDelivered = "delivered"
	resultFailed    = "failed"  // for good
	resultRetried   = "retried" // later
	resultPutOff    = "put_off" // not an attempt: the mail server is away, the target is busy
)

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		published:     prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_events_published_total", Help: "Events that JetStream acknowledged."}),
		publishFailed: prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_publish_snoozes_total", Help: "Publish jobs put off because JetStream did not acknowledge."}),
		paused:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "latchkey_intake_paused", Help: "1 while this process fetches no requests because publish jobs pile up."}),
		swept:         prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_clicks_swept_total", Help: "Clicks closed as interrupted or abandoned."}),
		sealed:        prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_audit_rows_sealed_total", Help: "Audit rows that went into the hash chain."}),
		delivered:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "latchkey_deliveries_total", Help: "Attempts at mails and webhooks by how they ended."}, []string{"channel", "result"}),
	}
	for _, channel := range []string{ChannelEmail, ChannelWebhook} {
		for _, result := range []string{resultDelivered, resultFailed, resultRetried, resultPutOff} {
			m.delivered.WithLabelValues(channel, result)
		}
	}
	if reg != nil {
		reg.MustRegister(m.published, m.publishFailed, m.paused, m.swept, m.sealed, m.delivered)
	}
	return m
}

// intakeMetrics count requests by how they ended: issued, duplicate, redelivered, or a code.
type intakeMetrics struct {
	requests *prometheus.CounterVec
	batches  prometheus.Counter
	failed   prometheus.Counter
}

func newIntakeMetrics(reg prometheus.Registerer) *intakeMetrics {
	m := &intakeMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "latchkey_requests_total", Help: "Requests by how they ended."}, []string{"result"}),
		batches:  prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_intake_batches_total", Help: "Transactions that intake committed."}),
		failed:   prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_intake_failures_total", Help: "Batches given back to JetStream because the database did not take them."}),
	}
	// Present from the start, or the first rejection of a kind makes no rate.
	for _, result := range []string{"issued", "duplicate", "redelivered", string(InvalidJSON), string(TooLarge), string(InvalidField),
		string(IDConflict), string(Expired), string(DeliveryUnavailable), string(ModeMismatch)} {
		m.requests.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.batches, m.failed)
	}
	return m
}

func (m *intakeMetrics) count(items []*Item) {
	m.batches.Inc()
	for _, item := range items {
		m.requests.WithLabelValues(item.result()).Inc()
	}
}

func (i *Item) result() string {
	switch {
	case i.Rejection != nil:
		return string(i.Rejection.Code)
	case i.redelivery:
		return "redelivered"
	case i.Repeat:
		return "duplicate"
	}
	return "issued"
}
