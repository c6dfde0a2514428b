package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/chromedp"

	"hsm-signer/integration/must"
	"hsm-signer/integration/testenv"
)

// A browser is a headless browser with one open page.
type browser struct {
	ctx  context.Context
	page string

	mu       sync.Mutex
	complain []string // what the browser says is wrong with the page
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	b := &browser{}
	listen := chromedp.WithListener(func(event any) {
		if entry, ok := event.(*log.EventEntryAdded); ok &&
			!strings.HasSuffix(entry.Entry.URL, "/favicon.ico") {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.complain = append(b.complain, entry.Entry.Text)
		}
	})
	// root's browser has none, and the page is ours
	noSandbox := chromedp.WithAllocatorOptions(chromedp.NoSandbox)
	var cancel context.CancelFunc
	b.ctx, cancel = chromedp.NewContext(t.Context(), noSandbox, listen)
	t.Cleanup(cancel)
	must.Get(chromedp.Call(b.ctx, log.Enable, cdp.Empty{}))(t)
	return b
}

// A look is a way to display the page.
type look struct {
	name  string
	width int64
	dark  bool
}

var (
	desk  = look{"light", 1280, false}
	night = look{"dark", 1280, true}
	phone = look{"phone", 360, false}
	inBed = look{"phone-dark", 360, true}
)

// faintTexts returns the texts whose displayed colour has a contrast below 4.5:1 with its
// background (WCAG 2.2, 1.4.3).
const faintTexts = `(() => {
	const parse = c => c.match(/[\d.]+/g).map(Number);
	const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
	const luminance = ([r, g, b]) =>
		0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
	const behind = e => {
		for (; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c.length < 4 || c[3] > 0) return c;
		}
		return [255, 255, 255];
	};
	const faint = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; n = texts.nextNode();) {
		if (!n.textContent.trim()) continue;
		const a = luminance(parse(getComputedStyle(n.parentElement).color));
		const b = luminance(behind(n.parentElement));
		const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (contrast < 4.5) faint.push(contrast.toFixed(2) + ":1 of " + n.textContent.trim());
	}
	return faint;
})()`

// see opens the page, requires that it fits, and takes a screenshot, which SCREENSHOTS keeps.
func (b *browser) see(t *testing.T, what string, l look) (text string) {
	t.Helper()
	scheme := map[bool]string{false: "light", true: "dark"}[l.dark]
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	must.Get(chromedp.Call(ctx, emulation.SetEmulatedMedia,
		emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme},
		}}))(t)
	must.OK(t, chromedp.Do(ctx, chromedp.EmulateViewport(l.width, 800), chromedp.Navigate(b.page)))
	text = must.Get(chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`)))(t)
	wide := must.Get(chromedp.Run(ctx,
		chromedp.Evaluate[bool](
			`document.documentElement.scrollWidth > document.documentElement.clientWidth`)))(t)
	background := must.Get(chromedp.Run(ctx,
		chromedp.Evaluate[string](`getComputedStyle(document.body).backgroundColor`)))(t)
	faint := must.Get(chromedp.Run(ctx, chromedp.Evaluate[[]string](faintTexts)))(t)
	for _, text := range faint {
		t.Errorf("%s, %s: too little contrast: %s", what, l.name, text)
	}
	image := must.Get(chromedp.Run(ctx, chromedp.FullScreenshot(100)))(t)
	if wide {
		t.Errorf("%s, %s: it is wider than the screen", what, l.name)
	}
	if dark := background == "rgb(20, 23, 26)"; dark != l.dark {
		t.Errorf("%s, %s: the background is %s", what, l.name, background)
	}
	if dir := os.Getenv("SCREENSHOTS"); dir != "" {
		must.OK(t, os.WriteFile(filepath.Join(dir, what+"-"+l.name+".png"), image, 0o600))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, complaint := range b.complain {
		t.Errorf("%s, %s: the browser complains: %s", what, l.name, complaint)
	}
	return text
}

// show requires these words on the page of a daemon, in every look.
func (b *browser) show(t *testing.T, d *testenv.Daemon, what string, words ...string) {
	t.Helper()
	b.showTo(t, d, what, []look{desk, night, phone, inBed}, words...)
}

// showTo requires these words on the page of a daemon, in these looks.
func (b *browser) showTo(t *testing.T, d *testenv.Daemon, what string, looks []look,
	words ...string) {
	t.Helper()
	b.page = must.Get(d.StatusPage(t.Context()))(t)
	for _, l := range looks {
		text := b.see(t, what, l)
		for _, want := range words {
			if !strings.Contains(text, want) {
				t.Errorf("%s, %s: %q is missing in:\n%s", what, l.name, want, text)
			}
		}
	}
}

func TestStatusPageInABrowser(t *testing.T) {
	b := newBrowser(t)
	t.Run("well", func(t *testing.T) {
		// Other tests may have left open ones.
		must.OK(t, shared.Cluster.DeleteRequests(t.Context()))
		d := startReady(t, ca)
		b.show(t, d, "nothing-yet", "All is well", "Nobody has asked", "days left")
		askInVain(t)
		for range 3 {
			for _, c := range components {
				p, asking := newRequester(t, c)
				requireCertificate(t, p, asking)
			}
		}
		must.Eventually(t, "the last one to be reported",
			func(context.Context) (bool, error) { return issuedBy(d) == 9, nil })
		b.show(t, d, "healthy", "All is well", "Issued in the last hour: 9",
			"issued by rule calico-typha", "refused", `"typha-server"`,
			"system:serviceaccount:calico-system:calico-node", "Open requests: 0",
			"in force", "CA certificate of "+testenv.SignerName)
	})
	t.Run("down", func(t *testing.T) {
		d := start(t, ca, "PKCS11_TOKEN_LABEL=nobody")
		must.OK(t, d.WaitNotReady(t.Context(), "[+] requests ok\n[+] permissions ok\n"+
			"[+] credential ok\n[-] token: token labelled"))
		submitOpen(t, 50)
		must.Eventually(t, "the outage to last", func(ctx context.Context) (bool, error) {
			metrics := d.Metrics(ctx)
			return metric(t, metrics, "hsm_signer_unanswered_seconds") > 15, nil
		})
		b.show(t, d, "hsm-down", "Not well: HSM", "hsm-signer check", "stay pending",
			"Open requests: 50", "No answer for", "Since 20", "Runbook: HSMSignerTokenUnavailable",
			"none has been answered for")
		must.OK(t, shared.Cluster.DeleteRequests(t.Context()))
		page := b.page
		b.page += "/runbook#hsmsignertokenunavailable"
		for _, l := range []look{desk, inBed} {
			if text := b.see(t, "runbook", l); !strings.Contains(text, "The HSM does not sign") {
				t.Errorf("the runbook is not shown:\n%s", text)
			}
		}
		b.page = page
	})
	t.Run("shadow", func(t *testing.T) {
		d := startReady(t, ca, "APPROVE=shadow")
		b.showTo(t, d, "shadow", []look{desk}, "A shadow", "none: a shadow acts on nothing")
	})
	t.Run("standby", func(t *testing.T) {
		first := startCandidate(t)
		waitLeads(t, first)
		leader := first.Identities()[0]
		b.showTo(t, first, "leader", []look{desk}, "this one\n"+leader)
		second := startCandidate(t)
		waitLog(t, second, `"`+leader+`"`)
		b.showTo(t, second, "standby", []look{desk, inBed}, "another one leads",
			"another one; this one stands by\n"+leader)
	})
	t.Run("ending", func(t *testing.T) {
		dir, gone := formerly(t)
		d := startReady(t, ca, "STATE_DIR="+dir)
		waitMetrics(t, d, "hsm_signer_expiring_pods 2\n", "hsm_signer_expired_pods 1\n",
			`hsm_signer_certificates_valid{within_days="7"} 3`,
			`hsm_signer_certificates_valid{within_days="+Inf"} 6`)
		b.show(t, d, "ending", "something needs you", "ended 3 hours ago",
			"1 of 2 dark: calico-system/",
			"kubectl -n calico-system rollout restart daemonset/calico-node",
			"kubectl -n calico-system rollout restart deployment/calico-typha", "in 20 days")
		if text := b.see(t, "ending", desk); strings.Contains(text, gone.Name) {
			t.Errorf("a pod that is gone is named:\n%s", text)
		}
	})
}

// askInVain has a pod request another component's name.
func askInVain(t *testing.T) {
	t.Helper()
	p, asking := newRequester(t, node)
	asking.DNSNames, asking.SecretName = typha.DNSNames, fmt.Sprintf("<b>impostor-%d",
		numbers.Add(1))
	if _, err := asking.Run(t.Context(), p.Client); err == nil {
		t.Error("it got another's name")
	}
}

// A hostile site can resolve its own name to this machine. The browser then sends that name.
func TestStatusPageIsForItsOwnNamesAlone(t *testing.T) {
	page := must.Get(startReady(t, ca).StatusPage(t.Context()))(t)
	for host, want := range map[string]int{"localhost": http.StatusOK,
		"evil.example": http.StatusMisdirectedRequest} {
		request := must.Get(http.NewRequestWithContext(t.Context(), http.MethodGet, page, nil))(t)
		request.Host = host
		response := must.Get(http.DefaultClient.Do(request))(t)
		must.OK(t, response.Body.Close())
		if response.StatusCode != want || response.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: %s", host, response.Status)
		}
	}
}
