package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// What is as wide as it can be is said by check, which passes all the same, and in the log.
func TestWidthIsSaid(t *testing.T) {
	faults := &configFaults{}
	c := &config{policyFile: "../../integration/testdata/allow-everything.yaml", clusterDomain: "cluster.local", lifetime: time.Hour}
	p := c.loadPolicy(faults)
	if err := faults.err(); err != nil {
		t.Fatal(err)
	}
	const loudly = "rule everything: ANYONE (from.users: *) may have ANY name"
	var lines []checkLine
	checkPolicy(genericCA(t)(), p, func(name, detail string, err error) { lines = append(lines, lineOf(name, detail, err)) })
	if len(lines) != 2 || lines[0].Result != "ok" || lines[1].Result != "warning" || !strings.HasPrefix(lines[1].Detail, loudly) {
		t.Errorf("check says %+v", lines)
	}
	var log bytes.Buffer
	logWarnings(hclog.New(&hclog.LoggerOptions{Output: &log}), p.Warnings())
	if !strings.Contains(log.String(), loudly) || !strings.Contains(log.String(), "[WARN]") {
		t.Errorf("the log says %s", &log)
	}
}
