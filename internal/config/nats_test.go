package config

import (
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"latchkey/internal/testkit"
)

// elsewhere is a connection that says it leads to another machine.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 4222}
}

type dialElsewhere struct{ to string }

func (d dialElsewhere) Dial(string, string) (net.Conn, error) {
	conn, err := net.Dial("tcp", d.to)
	return elsewhere{conn}, err
}

// Plain text is fine on this machine and is told of off it.
func TestExposed(t *testing.T) {
	url := testkit.NATS(t)
	for name, test := range map[string]struct {
		opts []nats.Option
		says string
	}{
		"loopback":        {nil, ""},
		"another machine": {[]nats.Option{nats.SetCustomDialer(dialElsewhere{strings.TrimPrefix(url, "nats://")})}, "tls://"},
	} {
		nc, err := NATS{URL: url}.Connect("test", test.opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if got := Exposed(nc); (got == "") != (test.says == "") || !strings.Contains(got, test.says) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestInboxPrefix(t *testing.T) {
	url := testkit.NATS(t)
	nc, err := NATS{URL: url, Inbox: "_INBOX_jo"}.Connect("test")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if inbox := nc.NewInbox(); !strings.HasPrefix(inbox, "_INBOX_jo.") {
		t.Errorf("an inbox is %s", inbox)
	}
	for _, prefix := range []string{"_INBOX.>", "a.*", "a."} {
		if _, err := (NATS{URL: url, Inbox: prefix}).Connect("test"); err == nil || !strings.Contains(err.Error(), "NATS_INBOX_PREFIX") {
			t.Errorf("%s: %v", prefix, err)
		}
	}
}
