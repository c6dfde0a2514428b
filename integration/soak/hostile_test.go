package soak

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"hsm-signer/integration/calico"
	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// hostiles is a batch in which each request must be refused.
type hostiles struct{ *batch }

func (s *fixture) newHostiles(t *testing.T) hostiles {
	t.Helper()
	return hostiles{s.newSpoiledBatch(t, spoiled)}
}

// spoiled returns, in turn, each kind of request for another's names or for too much.
func spoiled(number int, asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest,
	error) {
	switch number % 5 {
	case 0:
		asking.DNSNames = []string{"typha-server"}
	case 1:
		asking.Pod = asking.Pod.DeepCopy()
		asking.Pod.Status.PodIP = net.IPv4(10, 99, byte(number>>8), byte(number)).String()
	case 2:
		for i := range 1000 {
			asking.DNSNames = append(asking.DNSNames, fmt.Sprintf("name-%d.example.com", i))
		}
	}
	csr, err := asking.Object()
	if err != nil {
		return nil, err
	}
	switch number % 5 {
	case 3:
		csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.UsageCertSign)
	case 4:
		csr.Spec.Request = slices.Concat(csr.Spec.Request, csr.Spec.Request)
	}
	return csr, nil
}

// Hostile requests arrive ten times as often as good ones.
func TestHostilesBesideGoodOnes(t *testing.T) {
	r := begin(t, 18, "50 hostile requests a second and 5 good ones, for two minutes",
		"every good one issued; p99 reported")
	s := shared.signer(t)
	d := s.startReady(t)
	good, bad := shared.newBatch(t), shared.newHostiles(t)
	w := watchCertificates(t, good)
	began := time.Now()
	stopBad, stopGood := bad.keepAsking(t, 50), good.keepAsking(t, 5)
	good.waitForSize(t, of(25, 600)) // 600 at 5 a second take two minutes
	stopGood()
	stopBad()
	lasted := time.Since(began).Seconds()
	good.waitForAll(t)
	w.end(t)
	latencies := w.latencies()
	denied := bad.waitForDenials(t)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, good)
	r.measured("%d hostile (%.0f a second), all refused; %d good (%.1f a second), lost %d", denied,
		float64(denied)/lasted, good.size(), float64(good.size())/lasted,
		good.size()-len(latencies))
	r.measured("from the request to the certificate: p50 %s, p99 %s, most %s",
		percentile(latencies, 50), percentile(latencies, 99), percentile(latencies, 100))
}

// percentile formats a percentile of the sorted latencies.
func percentile(latencies []time.Duration, percent int) string {
	if len(latencies) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d ms", latencies[(len(latencies)-1)*percent/100].Milliseconds())
}

// megabyte is text that the API server accepts before a PKCS#10 in PEM.
var megabyte = bytes.Repeat([]byte("nothing to see here, move along\n"), 1<<15)

// oversized changes requests to 1 MB, for this signer name: every second one is a good request
// after text, the others are for very many names.
func oversized(signerName string) spoiling {
	return func(number int,
		asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest, error) {
		asking.SignerName = signerName
		if number%2 == 0 {
			for i := range 22_000 {
				asking.DNSNames = append(asking.DNSNames,
					fmt.Sprintf("a-name-of-thirty-bytes-%05d.com", i))
			}
		}
		csr, err := asking.Object()
		if err == nil && number%2 == 1 {
			csr.Spec.Request = slices.Concat(megabyte, csr.Spec.Request)
		}
		return csr, err
	}
}

// longNamed returns good requests with a name of 400 KiB.
func longNamed(number int, asking *calico.InitContainer) (*certificatesv1.CertificateSigningRequest,
	error) {
	csr, err := asking.Object()
	if err == nil {
		// etcd stores the name three times, and 1.5 MB in all
		csr.Name = fmt.Sprintf("%d-%s", number, strings.Repeat("x", 400<<10))
	}
	return csr, err
}

// Half of the requests of 1 MB, for this signer and for another, exist before hsm-signer starts.
func TestMemory(t *testing.T) {
	foreign, ours := of(50, 500), of(20, 200)
	r := begin(t, 17,
		"500 foreign requests of 1 MB, 200 of our own at 1 MB, and 50 with a name of 400 KiB, "+
			"half of them there before the start", "peak memory ≤ 256 MiB")
	own := ownFixture(t)
	s := own.signer(t)
	others := own.newSpoiledBatch(t, oversized("example.com/other"))
	bad := hostiles{own.newSpoiledBatch(t, oversized(testenv.SignerName))}
	long, good := own.newSpoiledBatch(t, longNamed), own.newBatch(t)
	ask := func() {
		others.ask(t, foreign/2)
		bad.ask(t, ours/2)
		long.ask(t, of(4, 25))
	}
	ask()
	d := s.startReady(t)
	ask()
	if long.size() == 0 {
		t.Error("the API server accepts no long name")
	}
	good.ask(t, 10)
	good.waitForAll(t)
	denied := bad.waitForDenials(t)
	peak := peakMemory(t, d)
	must.OK(t, d.Shutdown())
	d = s.startReady(t) // with all of these requests in the cluster
	good.ask(t, 10)
	good.waitForAll(t)
	again := peakMemory(t, d)
	must.OK(t, d.Shutdown())
	s.account(t).requireWhole(t, good)
	if most := max(peak, again); most > 256 {
		t.Errorf("the peak of the memory is %d MiB", most)
	}
	r.measured("%d foreign, %d of our own refused, %d with a long name left alone; %d good "+
		"ones issued", others.size(), denied, long.size(), good.size())
	r.measured("peak of the memory (VmHWM) %d MiB; %d MiB after a start among all of them", peak,
		again)
}

// peakMemory returns the largest resident size that the process has had, in MiB.
func peakMemory(t *testing.T, d *testenv.Daemon) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.PID()), "status"))
	must.OK(t, err)
	for text := range bytes.Lines(status) {
		var kB int
		if n, _ := fmt.Sscanf(string(text), "VmHWM: %d kB", &kB); n == 1 {
			return kB >> 10
		}
	}
	t.Fatalf("there is no VmHWM in:\n%s", status)
	return 0
}
