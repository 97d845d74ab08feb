# A handful of names for what one types anyway. `.ci/run` does all of it on a bare machine.

FUZZTIME ?= 30000x

.PHONY: build test lint fuzz bench rolling faults soak

build: ## both binaries, static, into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/ ./cmd/worker ./cmd/enqueue

test:
	go test ./...

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

# Each fuzz target of each package for FUZZTIME inputs; go test takes one target at a time.
fuzz:
	@set -e; for pkg in $$(go list ./...); do \
		targets=$$(go test -list '^Fuzz' $$pkg | sed -n '/^Fuzz/p'); \
		for target in $$targets; do \
			echo "== $$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg; \
		done; \
	done

rolling: ## one release replaced by the next under load, for each migration; needs the history of git
	go run ./internal/rolling

bench: ## writes docs/performance.md; a part alone: go run ./internal/bench -only stampede -docs docs
	go run ./internal/bench -docs docs

faults: ## writes docs/reliability.md; one run: go run ./internal/fault -seed 17
	go run ./internal/fault -seeds 1-200 -at-once 3 -docs docs

SOAK ?= 1h

soak: ## half of what this machine can do, for SOAK; fails where memory, goroutines, files or tables grow
	go run ./internal/fault -soak $(SOAK) -docs docs
