# Builds both binaries as static files and puts them into an image with nothing else in it but the
# certificates that TLS connections are checked by. The image has no shell.

FROM golang:1.26.8-bookworm AS build
WORKDIR /src
# The modules first: this layer is kept until go.mod or go.sum change.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o /out/ ./cmd/worker ./cmd/enqueue

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/worker /out/enqueue /usr/local/bin/
# A number, so that an orchestrator can tell that it is not root.
USER 65532:65532
# 8080 is the click server, for the public. 9090 is the internal server, which by default listens
# on loopback only: set ADMIN_ADDR, and with it ADMIN_TOKEN, where a probe or a scraper comes from outside
# of the container.
EXPOSE 8080 9090
# A stop takes at most 15 s: give the container a grace period of 20 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/worker"]
CMD ["run"]
