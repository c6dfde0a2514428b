# "make demo" and "make test" need nothing but Go. As root they install missing Debian packages;
# otherwise they name them.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
VALE        := github.com/vale-cli/vale/v3/cmd/vale@v3.21.0
# What Vale reads: the manuals, and the Go packages whose comments pass. These lists only grow.
PROSE       := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs integration/bench/README.md integration/bench/profiles.md integration/refused.md
PROSE_GO    := cmd hsm integration internal issuer kube policy
FUZZTIME    ?= 60s
IMAGE       ?= hsm-signer:latest
CLUSTER     ?= .cluster
PACKAGES    ?=
TARGETS     ?=
SIGNING_KEY ?=
SIGNING_PUBLIC_KEY ?=
BENCH       ?=
# The parts of "make bench" in addition to the signatures.
SPEED       := Storm|Approved|Kubernetes|Single|Keys|Delays|Growth
BUILD_IMAGE ?= golang:1.26-bookworm
RUNTIME_IMAGE ?= debian:bookworm-slim
GOFIPS140   ?= off
# The suites wait more than they compute, so four run at a time; the longest start first.
LONG_SUITES := ./e2e ./tokens ./soak
RELEASE     ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT      ?= $(shell git rev-parse HEAD 2>/dev/null)
export RELEASE COMMIT

.PHONY: help build bench bench-clients unreliable faults soak setup basics demo test lint fuzz cluster cluster-down image compose release release-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

build: ## bin/hsm-signer
	GOFIPS140=$(GOFIPS140) $(GO) build -trimpath -buildvcs=false -buildmode=pie -ldflags "-s -w -X hsm-signer/cmd/hsm-signer/internal/buildinfo.release=$(RELEASE) -X hsm-signer/cmd/hsm-signer/internal/buildinfo.commit=$(COMMIT)" -o bin/hsm-signer ./cmd/hsm-signer

setup: ## install what building and testing need
	@sh integration/setup.sh

basics: # without what only the tests of all tokens need
	@sh integration/setup.sh basics

demo: basics ## the main job on real parts, in a terminal; KEEP=1 leaves it running
	@cd integration && $(GO) run ./cmd/demo

test: setup ## every test; the first run builds kube-apiserver and etcd (6 to 15 minutes)
	$(GO) test -race ./...
	cd integration && $(GO) run ./cmd/cluster build
	cd integration && $(GO) test -count=1 -p 4 -parallel 4 -timeout 60m $(LONG_SUITES) $$($(GO) list ./... | grep -v -e '/integration$$' -e '/images$$')
	cd integration && SOURCES=$$(sh sources.sh) $(GO) test -p 1 -timeout 60m . ./images # cached by the sources
	cd integration/monitoring && $(GO) test -count=1 ./...

soak: basics ## every external failure in full, about an hour, as root; writes integration/soak/report.md; ROW=TestLeaders: one row
	cd integration && SOAK=full $(GO) test -count=1 -timeout 3h -v -run '$(ROW)' ./soak

bench: basics ## the speed, in less than an hour; writes integration/bench/results.json; BENCH=storm: one part (signer, storm, approved, kubernetes, single, keys, delays, growth; only if named: pods, start)
	$(if $(filter-out signer,$(BENCH)),:,cd integration && BENCH_RESULTS=results.json $(GO) test -run '^$$' -bench Signer -benchtime 300x -timeout 30m ./bench)
	$(if $(filter signer,$(BENCH)),:,cd integration && BENCH_RESULTS=results.json $(GO) test -run '^$$' -bench '(?i)^Benchmark($(or $(BENCH),$(SPEED)))$$' -benchtime 1x -timeout 90m ./bench)

bench-clients: basics ## clients like Calico's, with and without pacing, as root, about 4 hours; PAIRS=1 BENCH=Clients/300_added: less
	cd integration && BENCH_RESULTS=results.json $(GO) test -run '^$$' -bench '$(or $(BENCH),Clients)' -benchtime 1x -timeout 8h ./bench

unreliable: basics ## a token whose calls fail at random; writes docs/hsm-unreliable.md (about 10 minutes)
	cd integration && UNRELIABLE=$(CURDIR)/docs/hsm-unreliable.md $(GO) test -run '^$$' -bench UnreliableToken -benchtime 1x -timeout 60m ./bench

faults: setup ## every fault of a token on every kind of token; writes docs/hsm-faults.md (about 6 minutes)
	cd integration && FAULTS=$(CURDIR)/docs/hsm-faults.md $(GO) test -count=1 -timeout 30m -run '^TestFaults$$' ./tokens

lint: basics ## gofmt, vet, staticcheck, Vale (plain English), import arrows, known vulnerabilities (VULNCHECK=required: fail if the scan cannot run), dependencies that are behind
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted: $$unformatted"; exit 1; }
	for script in integration/*.sh integration/images/*.sh deploy/overlays/*/*.sh deploy/packages/*.sh; do sh -n $$script || exit 1; done; bash -n docs/verify-journal.sh
	$(GO) vet ./... && cd integration && $(GO) vet ./... && cd monitoring && $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./... && cd integration && $(GO) run $(STATICCHECK) ./... && cd monitoring && $(GO) run $(STATICCHECK) ./...
	@# What needs no token needs no cgo.
	CGO_ENABLED=0 $(GO) vet -trimpath ./cmd/hsm-signer && CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) vet -trimpath ./cmd/hsm-signer
	cd integration && $(GO) test -count=1 -run 'TestImports|TestProse' .
	$(GO) run $(VALE) --no-global $(PROSE) $(PROSE_GO)
	@integration/vulnerabilities.sh "$(GO) run $(GOVULNCHECK)"
	@GO=$(GO) sh integration/outdated.sh . integration integration/monitoring

fuzz: ## every fuzz target in turn, FUZZTIME each
	@packages=$$($(GO) list ./...) || exit 1; for package in $$packages; do \
		list=$$($(GO) test -list '^Fuzz' $$package) || { echo "$$list"; exit 1; }; \
		for target in $$(echo "$$list" | grep ^Fuzz); do \
			echo "== $$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$package || exit 1; \
		done; \
	done

cluster: basics ## a real API server and etcd in the background; prints one line to evaluate
	@cd integration && $(GO) run ./cmd/cluster up --dir $(abspath $(CLUSTER))

cluster-down: ## stop it; its state stays in CLUSTER (.cluster)
	@cd integration && $(GO) run ./cmd/cluster down --dir $(abspath $(CLUSTER))

image: ## the container image; PACKAGES=softhsm2 adds Debian's packages, GOFIPS140=v1.0.0 a FIPS 140-3 module
	@sh integration/images/pinned.sh "$(RELEASE)" "$(BUILD_IMAGE)" "$(RUNTIME_IMAGE)"
	@sh integration/setup.sh images
	@sh integration/images/stand-ins.sh "$(RUNTIME_IMAGE)" "$(BUILD_IMAGE)"
	docker build --build-arg BUILD_IMAGE=$(BUILD_IMAGE) --build-arg RUNTIME_IMAGE=$(RUNTIME_IMAGE) --build-arg GOPROXY=$(shell $(GO) env GOPROXY) --build-arg GOFIPS140=$(GOFIPS140) --build-arg PACKAGES="$(PACKAGES)" \
		--build-arg RELEASE=$(RELEASE) --build-arg COMMIT=$(COMMIT) -t $(IMAGE) .

compose: ## the demo in containers, with docker compose; KEEP=1 leaves it running
	@sh integration/setup.sh images
	@sh integration/images/compose.sh

release: ## a release of the commit in dist: archives, packages, bills of materials; SIGNING_KEY=FILE or URI signs it (CONTRIBUTING.md)
	@sh integration/setup.sh release
	@cd integration && $(GO) run ./cmd/release --out ../dist --base $(RUNTIME_IMAGE) $(if $(filter environment command,$(origin RELEASE)),--release '$(RELEASE)') --key '$(if $(filter-out pkcs11:%,$(SIGNING_KEY)),$(abspath $(SIGNING_KEY)),$(SIGNING_KEY))' --public-key '$(abspath $(SIGNING_PUBLIC_KEY))' $(TARGETS)

release-check: ## as root: two releases from two directories have the same bytes; installs, upgrades and removes the packages; TARGETS=linux_amd64: fewer
	@sh integration/setup.sh release-check
	cd integration && RELEASE_CHECK='$(or $(TARGETS),all)' $(GO) test -count=1 -timeout 2h -v -run '^TestRelease$$' ./release
	cd integration && RELEASE_CHECK=packages $(GO) test -count=1 -timeout 1h -v -run '^TestReleaseUnderSystemd$$' ./images

clean: ## remove what was built here
	rm -rf bin dist
