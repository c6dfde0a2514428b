package metrics

import (
	"encoding/binary"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/cmd/hsm-signer/internal/witness"
	"hsm-signer/issuer/journal"
)

// journalMetrics shows the state of the journal at each scrape.
//
// That includes the head of its chain, so a store of metrics is a witness of it. A hash in a label
// would be a new series with each line. As eight numbers of 32 bits, which a float holds exactly,
// it is always the same eight series.
type journalMetrics struct {
	journal *journal.Journal
	witness *witness.Witness
}

var (
	journalReady = prometheus.NewDesc("hsm_signer_journal_ready",
		"1 while the journal accepts new requests; 0 while it cannot be opened or written, or "+
			"another process has it open.", nil, nil)
	journalLines = prometheus.NewDesc("hsm_signer_journal_lines_total",
		"Lines of the journal, by kind, since it was created.", []string{"kind"}, nil)
	journalUnpublished = prometheus.NewDesc("hsm_signer_journal_unpublished",
		"Requests that were started and are neither published nor abandoned.", nil, nil)
	journalUnpublishedLimit = prometheus.NewDesc("hsm_signer_journal_unpublished_limit",
		"The limit of hsm_signer_journal_unpublished, JOURNAL_MAX_UNFINISHED: no more requests "+
			"are started.", nil, nil)
	journalRequests = prometheus.NewDesc("hsm_signer_journal_requests",
		"Requests that the journal remembers.", nil, nil)
	journalRequestsLimit = prometheus.NewDesc("hsm_signer_journal_requests_limit",
		"The limit of hsm_signer_journal_requests, JOURNAL_MAX_REQUESTS: no more requests are "+
			"started.", nil, nil)
	journalHeadSeq = prometheus.NewDesc("hsm_signer_journal_head_seq",
		"The number of the journal's last line, by the journal's id.", []string{"journal"}, nil)
	journalHeadHash = prometheus.NewDesc("hsm_signer_journal_head_sha256",
		"The SHA-256 of the journal's last line: eight words of 32 bits, 0 the first.",
		[]string{"word"}, nil)
	journalRolledBack = prometheus.NewDesc("hsm_signer_journal_rolled_back",
		"1 while a witness has a head that the journal lacks, so nothing is signed; else 0.",
		nil, nil)
	journalSuspected = prometheus.NewDesc("hsm_signer_journal_rollback_suspected",
		"1 while a witness has an unsigned head that the journal lacks, or knows another "+
			"journal of this STATE_DIR; else 0.", nil, nil)
	refusalsDropped = prometheus.NewDesc("hsm_signer_refusals_dropped_total",
		"Refusals that are missing in the refusal log, which must not take space that issuing "+
			"needs.", nil, nil)
)

// Describe is [prometheus.Collector]'s.
func (m journalMetrics) Describe(all chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{journalReady, journalLines, journalUnpublished,
		journalUnpublishedLimit, journalRequests, journalRequestsLimit,
		journalHeadSeq, journalHeadHash, journalRolledBack, journalSuspected, refusalsDropped} {
		all <- desc
	}
}

// Collect is [prometheus.Collector]'s. While the journal is not open, it shows only that.
func (m journalMetrics) Collect(all chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	count := func(desc *prometheus.Desc, value int64, labels ...string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value),
			labels...)
	}
	gauge(journalReady, Number(m.journal.State() == nil))
	w := m.journal.Writer()
	if w == nil {
		return
	}
	s, used := w.Summary(), w.Usage()
	for kind, n := range s.Counts.ByKind() {
		count(journalLines, int64(n), string(kind))
	}
	count(refusalsDropped, m.journal.RefusalsDropped())
	gauge(journalUnpublished, float64(s.Unfinished))
	gauge(journalUnpublishedLimit, float64(used.MaxUnfinished))
	gauge(journalRequests, float64(used.Requests))
	gauge(journalRequestsLimit, float64(used.MaxRequests))
	gauge(journalHeadSeq, float64(s.Head.Seq), string(s.Journal))
	gauge(journalRolledBack, Number(w.RolledBack() != nil))
	gauge(journalSuspected, Number(m.witness.Suspicion() != nil))
	for word, value := range headWords(s.Head) {
		gauge(journalHeadHash, float64(value), strconv.Itoa(word))
	}
}

// headWords divides the hash into numbers.
func headWords(head journal.Head) (words [8]uint32) {
	for i := range words {
		words[i] = binary.BigEndian.Uint32(head.SHA256[4*i:])
	}
	return words
}
