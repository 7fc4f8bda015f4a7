# "make" alone prints what there is.
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BINARY  := bin/ollama-api-service

# grpcnotrace keeps golang.org/x/net/trace, and with it html/template and 14 MB, out of the binary.
export CGO_ENABLED = 0
GOFLAGS_BUILD := -trimpath -tags grpcnotrace -ldflags "-s -w -X main.version=$(VERSION)"

.PHONY: help build run demo test lint fmt clients bench clean

help: ## Show this list
	@echo "Ollama API Service: make TARGET"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-9s %s\n", $$1, $$2 }'

build: ## Build bin/ollama-api-service: one static binary
	go build $(GOFLAGS_BUILD) -o $(BINARY) ./cmd/ollama-api-service

run: build ## Start the service with the .env found here
	exec ./$(BINARY) serve

demo: ## A tour on a real Ollama, then stay up; ONCE=1 ends after the tour
	@ONCE="$(ONCE)" bash scripts/demo.sh

test: ## Everything: linters, known vulnerabilities, tests with -race, real Ollama and real clients
	@bash scripts/test.sh

lint: ## The linters and the check of the binary alone
	@bash scripts/test.sh lint

fmt: ## Format the Go files as lint wants them
	@go tool -modfile=tools/go.mod gofumpt -w $$(git ls-files -co --exclude-standard '*.go')

clients: ## Have the real clients tried, and write docs/clients.md from what they did
	go test -count=1 -run '^TestClients$$' ./e2e -update

bench: ## Measure beside nginx and a bare ReverseProxy; writes bench/RESULTS.md
	go run ./bench

clean: ## Remove what was built, and the data of demos
	rm -rf bin demo-data e2e/clients/node_modules
