package main

import (
	"encoding/binary"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"hsm-signer/issuer/journal"
)

// journalMetrics shows at each scrape how the journal stands.
//
// The head of its chain is among that, so that who keeps metrics is a witness of it. A hash in a label
// would be a new series with each line; as eight numbers of 32 bits, which a float holds exactly, it is
// always the same eight.
type journalMetrics struct {
	journal *journal.Journal
	witness *witness
}

var (
	journalReady = prometheus.NewDesc("hsm_signer_journal_ready",
		"1 while the journal takes new requests; 0 while it cannot be opened or written, or another process has it.", nil, nil)
	journalLines = prometheus.NewDesc("hsm_signer_journal_lines_total",
		"Lines of the journal, by kind, since it was begun.", []string{"kind"}, nil)
	journalUnpublished = prometheus.NewDesc("hsm_signer_journal_unpublished",
		"Requests of which something was begun that is neither published nor given up.", nil, nil)
	journalUnpublishedLimit = prometheus.NewDesc("hsm_signer_journal_unpublished_limit",
		"The number of such requests at which no new one is taken: JOURNAL_MAX_UNFINISHED.", nil, nil)
	journalRequests = prometheus.NewDesc("hsm_signer_journal_requests",
		"Requests that the journal remembers.", nil, nil)
	journalRequestsLimit = prometheus.NewDesc("hsm_signer_journal_requests_limit",
		"The number of such requests at which no new one is taken: JOURNAL_MAX_REQUESTS.", nil, nil)
	journalHeadSeq = prometheus.NewDesc("hsm_signer_journal_head_seq",
		"The number of the journal's last line, by the journal's id.", []string{"journal"}, nil)
	journalHeadHash = prometheus.NewDesc("hsm_signer_journal_head_sha256",
		"The SHA-256 of the journal's last line: eight words of 32 bits, 0 the first.", []string{"word"}, nil)
	journalRolledBack = prometheus.NewDesc("hsm_signer_journal_rolled_back",
		"1 while a witness has a head that the journal does not have, so that nothing is signed; else 0.", nil, nil)
	journalSuspected = prometheus.NewDesc("hsm_signer_journal_rollback_suspected",
		"1 while a witness has a head without a signature that the journal does not have, or knows another journal of this STATE_DIR; else 0.", nil, nil)
	refusalsDropped = prometheus.NewDesc("hsm_signer_refusals_dropped_total",
		"Refusals that are missing in the log of refusals, which takes no space that issuing needs.", nil, nil)
)

// Describe is [prometheus.Collector]'s.
func (m journalMetrics) Describe(all chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{journalReady, journalLines, journalUnpublished, journalUnpublishedLimit, journalRequests, journalRequestsLimit,
		journalHeadSeq, journalHeadHash, journalRolledBack, journalSuspected, refusalsDropped} {
		all <- desc
	}
}

// Collect is [prometheus.Collector]'s. While the journal is not open, only that is said.
func (m journalMetrics) Collect(all chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	count := func(desc *prometheus.Desc, value int64, labels ...string) {
		all <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge(journalReady, number(m.journal.State() == nil))
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
	gauge(journalRolledBack, number(w.RolledBack() != nil))
	gauge(journalSuspected, number(m.witness.suspicion() != nil))
	for word, value := range headWords(s.Head) {
		gauge(journalHeadHash, float64(value), strconv.Itoa(word))
	}
}

// headWords divides the hash.
func headWords(head journal.Head) (words [8]uint32) {
	for i := range words {
		words[i] = binary.BigEndian.Uint32(head.SHA256[4*i:])
	}
	return words
}
