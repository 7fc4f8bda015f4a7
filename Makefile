# "make" without a target prints the list of targets.
.DEFAULT_GOAL := help

# Without a tag, the version looks like the output of git describe with the version in the file VERSION as the first commit.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || echo "v$$(cat VERSION)$$(git log -1 --format=-%h 2>/dev/null | sed "s/-/-$$(git rev-list --count HEAD)-g/")")
BINARY  := bin/ollama-api-service

# grpcnotrace keeps golang.org/x/net/trace, and with it html/template and 14 MB, out of the binary.
export CGO_ENABLED = 0
LDFLAGS := -s -w -X main.version=$(VERSION)
GOFLAGS_BUILD = -trimpath -tags grpcnotrace -ldflags "$(LDFLAGS)"

.PHONY: help build run demo check test test-long lint race e2e deploy fmt chaos fuzz assets clients bench bench-peers attack packages packaged image release clean

help: ## Show this list
	@echo "Ollama API Service: make TARGET"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-10s %s\n", $$1, $$2 }'

build: ## Build bin/ollama-api-service: one static binary
	go build $(GOFLAGS_BUILD) -o $(BINARY) ./cmd/ollama-api-service

run: build ## Start the service with the .env in this directory
	exec ./$(BINARY) serve

demo: ## A tour with a real Ollama; then the service keeps running. ONCE=1 ends after the tour
	@ONCE="$(ONCE)" bash scripts/demo.sh

check: ## Between two edits: format, linters, word list, and the quick tests
	@bash scripts/test.sh check

test: ## Everything: lint, race, e2e, fuzz, deploy
	@bash scripts/test.sh

lint: ## Linters, six platforms, dead code, known vulnerabilities, the check of the binary
	@bash scripts/test.sh lint

race: ## All tests except e2e, with -race
	@bash scripts/test.sh race

e2e: ## The built binary with a real Ollama and real clients
	@bash scripts/test.sh e2e

deploy: ## Packages, image, unit and compose file
	@bash scripts/test.sh deploy

test-long: ## Statistical tests: all traces, 200 kills (ROUNDS), 100,000 inputs (INPUTS) for each fuzz target
	@bash scripts/test.sh long

fmt: ## Format the Go files
	@go tool -modfile=tools/go.mod gofumpt -w $$(git ls-files -co --exclude-standard '*.go')

ROUNDS ?= 200
chaos: ## ROUNDS (200) kills under load, dying backends, and a full disk, failing fsync and a locked database; needs root and strace
	go test -count=1 -timeout 2h -v -run '^Test(Chaos|Fleet)' ./e2e -rounds $(ROUNDS) -fleet-requests 10000

INPUTS ?= 1000000
fuzz: ## INPUTS (1,000,000) new inputs for each fuzz target; an hour and a half on two cores
	@bash scripts/fuzz.sh $(INPUTS)

assets: ## Build web/assets again from the npm packages in e2e/pages/package-lock.json
	cd e2e/pages && npm ci --no-audit --no-fund --loglevel=error && node vendor.mjs

clients: ## Run the real clients, and write docs/clients.md and web/clients.json
	go test -count=1 -run 'Fresh$$' ./internal/recipe -update
	go test -count=1 -run '^TestClients$$' ./e2e -update

bench: ## Compare with the commit before and other proxies, in 20 minutes; writes bench/RESULTS.md; BENCH='-only chats' for a part
	go run ./bench $(BENCH)

bench-peers: ## Compare with other gateways for models; builds them, and writes bench/PEERS.md
	go run ./bench -peers $(BENCH)

attack: ## Two keys attack eight others, with a scripted and a real Ollama: 12 minutes; ATTACK='-only swap' for one
	go run ./attack $(ATTACK)

# The packages and the image are for this architecture, or for another one with ARCH=arm64 and so on. One commit makes the same file,
# byte for byte.
ARCH  ?= $(shell go env GOARCH)
AT    ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
STAGE ?= bin/package
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
# The packaged program reads its settings from this file, in whatever directory it starts.
packaged: LDFLAGS += -X main.envFile=/etc/ollama-api-service/ollama-api-service.env

packages: packaged ## Build bin/*.deb and bin/*.rpm
	go run -C deploy/package . -version "$(VERSION)" -arch $(ARCH) -time $(AT) -stage $(abspath $(STAGE)) -out ../../bin

IMAGE ?= bin/ollama-api-service-image.tar
image: ## Build bin/ollama-api-service-image.tar for docker load or podman load
	mkdir -p $(dir $(IMAGE))
	GOARCH=$(ARCH) go build $(GOFLAGS_BUILD) -o $(IMAGE).binary ./cmd/ollama-api-service
	go run -C deploy/image . -binary $(abspath $(IMAGE)).binary -version "$(VERSION)" -arch $(ARCH) -time $(AT) \
	  -revision "$(REVISION)" -out $(abspath $(IMAGE))
	rm $(IMAGE).binary

# The platforms of the program; the image is for the two Linux ones. SIGN is a command that signs a file, whose name is appended to
# it. URL is the address of the files, for install.sh.
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
RELEASE   ?= bin/release
export SIGN ?=
export URL  ?=
release: ## Build bin/release: archives for six platforms, image, SBOMs, install.sh, checksums; SIGN='COMMAND' signs
	rm -rf $(RELEASE) $(RELEASE).stage && mkdir -p $(RELEASE) $(RELEASE).stage/share
	for platform in $(PLATFORMS); do \
	  GOOS=$${platform%/*} GOARCH=$${platform#*/} go build $(GOFLAGS_BUILD) -o $(RELEASE).stage/$$platform/ ./cmd/ollama-api-service || exit 1; \
	done
	go build $(GOFLAGS_BUILD) -o $(RELEASE).stage/here ./cmd/ollama-api-service
	for shell in bash zsh fish powershell; do \
	  $(abspath $(RELEASE)).stage/here completion $$shell >$(RELEASE).stage/share/completion.$$shell || exit 1; \
	done
	$(abspath $(RELEASE)).stage/here man >$(RELEASE).stage/share/ollama-api-service.1
	go run -C deploy/image . -version "$(VERSION)" -time $(AT) -revision "$(REVISION)" \
	  -index $(abspath $(RELEASE)).stage/linux -out "$(abspath $(RELEASE))/ollama-api-service_$(VERSION)_image.oci.tar"
	go run -C deploy/release . -version "$(VERSION)" -time $(AT) -stage $(abspath $(RELEASE)).stage -out $(abspath $(RELEASE)) \
	  -url "$$URL" -sign "$$SIGN"
	rm -rf $(RELEASE).stage

packaged:
	rm -rf $(STAGE) && mkdir -p $(STAGE)
	GOARCH=$(ARCH) go build $(GOFLAGS_BUILD) -o $(STAGE)/ollama-api-service ./cmd/ollama-api-service
	go build $(GOFLAGS_BUILD) -o $(STAGE)/here ./cmd/ollama-api-service
	for shell in bash zsh fish; do $(abspath $(STAGE))/here completion $$shell >$(STAGE)/completion.$$shell || exit 1; done
	$(abspath $(STAGE))/here man | gzip -9n >$(STAGE)/ollama-api-service.1.gz
	sed -e '1,2c# The settings of ollama-api-service. Change what you need, then: systemctl restart ollama-api-service\n# The values in comments are the defaults. The environment overrides this file, and an empty value counts as unset.' \
	  -e '/^# further up/s/ Keep the file.*//' -e 's|^#DATA_DIR=.*|DATA_DIR=/var/lib/ollama-api-service|' .env.example >$(STAGE)/ollama-api-service.env

clean: ## Remove built files, and the data of demos
	rm -rf bin demo-data
	find e2e -name node_modules -prune -exec rm -rf {} +
