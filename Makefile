# Sluice. `make help` lists the targets.

SHELL       := /bin/bash -o pipefail
.DEFAULT_GOAL := help

# Some machines export GOTOOLCHAIN=local; the version that go.mod names is meant.
export GOTOOLCHAIN := $(shell awk '$$1 == "toolchain" { print $$2 }' go.mod)
export CGO_ENABLED ?= 0

# The version comes from the commit (package admin/version).
GOFLAGS_BUILD := -trimpath -buildvcs=auto -ldflags '-s -w'

COMMANDS := sluice sluiced
TOOL     := go tool -modfile=tools/go.mod

# A real Envoy, with which the tests compare; deps-test gets it.
export ENVOY ?= $(CURDIR)/bin/envoy

# Debian 12's compiler: the committed BPF objects are its output byte for byte.
export CLANG := clang-14
export STRIP := llvm-strip-14

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build sluice, sluiced and the demo's programs into bin/
	@mkdir -p bin
	go build $(GOFLAGS_BUILD) -o bin/ $(COMMANDS:%=./cmd/%) ./examples/bookshop/app ./examples/bookshop/demo

.PHONY: build-arm64
build-arm64: ## cross-build everything for arm64
	GOARCH=arm64 go build $(GOFLAGS_BUILD) -o /dev/null ./...

.PHONY: generate
generate: deps-generate ## rebuild the BPF objects, the protos and the reference pages
	go generate ./...

.PHONY: check-generated
check-generated: generate ## fail if what is committed is not what generate makes
	@git diff --exit-code --stat -- . || { echo "generated files differ from the committed ones: commit what 'make generate' made"; exit 1; }

.PHONY: test
test: deps-test ## unit tests, BPF program tests and namespace tests (root)
	go test $(TESTFLAGS) ./...

.PHONY: race
race: deps-test ## the same with the race detector
	CGO_ENABLED=1 go test -race $(TESTFLAGS) ./...

# What is tested on the oldest kernel: every object is loaded, every program run.
# What crowds or fills whole tables takes too long without hardware acceleration.
KERNEL_PACKAGES := ./dataplane/probe ./dataplane/loader ./dataplane/events ./dataplane/forward \
	'./dataplane/steer:^Test(Clients|Forgery|CapturePorts|NestedNamespace|Inbound)' \
	'./dataplane/service:^Test(TCP|UDP|OneSocketManyServices|Local|Draining|Affinity)'

.PHONY: test-kernel
test-kernel: ## the BPF and namespace tests on Debian 12's Linux 6.1, in qemu (x86-64)
	@.ci/debian qemu-system-x86:qemu-system-x86_64 curl
	@.ci/kernel bin/kernel
	go run ./lab/kernel -image bin/kernel/vmlinuz -modules bin/kernel/modules $(KERNEL_PACKAGES)

.PHONY: mutants
mutants: deps-test deps-generate ## break parts one by one and see their tests fail: ONLY=regexp picks some (root, long)
	go run ./mutants -only '$(ONLY)'

.PHONY: lint
lint: ## formatting, vet and golangci-lint, with the import rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go') | head -50; exit 1; }
	go vet ./...
	$(TOOL) golangci-lint run

.PHONY: demo
demo: build ## a node, a bookshop and its story, in namespaces of its own (root)
	bin/demo

.PHONY: bench
bench: build deps-bench ## side by side with nginx, HAProxy and ReverseProxy: ROWS=P1,P2 QUICK=1 (root)
	go build $(GOFLAGS_BUILD) -o bin/bench ./bench
	bin/bench -rows '$(ROWS)' $(if $(QUICK),-quick)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

# What the targets need from Debian, installed only if it is missing.
.PHONY: deps-generate deps-test deps-bench
deps-generate:
	@.ci/debian clang-14 llvm-14 libbpf-dev protobuf-compiler
deps-test:
	@.ci/envoy bin/envoy
	@.ci/debian curl dnsutils openssl cpio
deps-bench:
	@.ci/debian nginx-light:nginx haproxy wrk
