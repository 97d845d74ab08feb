package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"latchkey/internal/rig"
)

// wire is the network between one worker and one server.
type wire struct{ *toxiproxy.Proxy }

// wires share what toxiproxy wants to have; nothing listens but they.
var wires = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())

func newWire(name, to string) (wire, error) {
	w := wire{toxiproxy.NewProxy(wires, name, rig.FreePort(), to)}
	return w, w.Start()
}

// cut ends every connection and refuses new ones.
func (w wire) cut() (lift func() error) {
	w.Stop()
	return w.Start
}

// freeze holds all bytes back, in both directions, and lets them go in the end. Connections stay, and new ones are taken.
func (w wire) freeze() (lift func() error, err error) {
	return w.poison("bandwidth", `{"rate": 0}`)
}

// slow lets bytes through late.
func (w wire) slow() (lift func() error, err error) {
	return w.poison("latency", `{"latency": 150, "jitter": 100}`)
}

func (w wire) poison(toxic, attributes string) (lift func() error, err error) {
	directions := []string{"upstream", "downstream"}
	for _, direction := range directions {
		if _, err := w.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": %s}`, direction, toxic, direction, attributes))); err != nil {
			return nil, fmt.Errorf("the proxy's %s: %w", toxic, err)
		}
	}
	return func() error {
		for _, direction := range directions {
			if err := w.Toxics.RemoveToxic(context.Background(), direction); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// relay gives a Unix socket an address, since the proxy speaks TCP only. It ends with its listener.
func relay(socket string) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go pass(from, socket)
		}
	}()
	return l, nil
}

func pass(from net.Conn, socket string) {
	defer func() { _ = from.Close() }()
	to, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	}()
	_, _ = io.Copy(from, to)
}
