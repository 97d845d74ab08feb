package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"latchkey/internal/testkit"
)

// patience ends a wait for something that will not come any more. Nothing is timed by it.
const patience = 60 * time.Second

// postfix is a real mail server, with its own spool and files, that delivers what it takes into a maildir.
type postfix struct {
	dir   string
	ca    *testkit.Authority
	ports map[string]string // by SASL mechanism; "smtps" has TLS from the start and offers all
}

// mechanisms are what Cyrus SASL, which Postfix uses, knows of those that we do.
var mechanisms = []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"}

const needsPostfix = "the tests against a real mail server need root, Postfix and Cyrus SASL; on Debian: " +
	"echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections && apt-get install --no-install-recommends postfix libsasl2-modules sasl2-bin"

func startPostfix(t *testing.T) *postfix {
	t.Helper()
	master := "/usr/lib/postfix/sbin/master"
	_, noMaster := os.Stat(master)
	passwd, noSASL := exec.LookPath("saslpasswd2")
	if os.Geteuid() != 0 || noMaster != nil || noSASL != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(needsPostfix)
		}
		t.Skip(needsPostfix)
	}
	p := &postfix{ca: testkit.NewAuthority(t), ports: map[string]string{}}
	var err error
	p.dir, err = os.MkdirTemp("", "latchkey-postfix-") // t.TempDir is closed to Postfix's own user
	ok(t, err)
	ok(t, os.Chmod(p.dir, 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	owner, err := user.Lookup("postfix")
	ok(t, err)
	p.spool(t, owner)
	p.certificate(t)
	p.users(t, passwd, owner)
	p.configure(t, owner)

	server := exec.Command(master, "-c", p.dir, "-d")
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	ok(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM) // it ends its children
		if err := server.Wait(); t.Failed() {
			log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			t.Logf("Postfix: %v %s %s", err, &said, log)
		}
	})
	p.await(t, func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+p.ports["smtps"])
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return p
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *postfix) path(name string) string { return filepath.Join(p.dir, name) }

func (p *postfix) spool(t *testing.T, owner *user.User) {
	t.Helper()
	ok(t, os.Mkdir(p.path("spool"), 0o755))
	for _, name := range strings.Fields("spool/incoming spool/active spool/deferred spool/defer spool/bounce spool/corrupt spool/hold spool/saved spool/trace spool/flush " +
		"spool/private spool/public spool/maildrop data mail") {
		ok(t, os.Mkdir(p.path(name), 0o700))
		p.give(t, name, owner)
	}
	ok(t, os.Mkdir(p.path("spool/pid"), 0o755))
}

func (p *postfix) give(t *testing.T, name string, owner *user.User) {
	t.Helper()
	uid, err1 := strconv.Atoi(owner.Uid)
	gid, err2 := strconv.Atoi(owner.Gid)
	ok(t, errors.Join(err1, err2, os.Chown(p.path(name), uid, gid)))
}

func (p *postfix) certificate(t *testing.T) {
	t.Helper()
	cert, key := testkit.PEM(t, p.ca.Certificate(t, "127.0.0.1"))
	ok(t, os.WriteFile(p.path("server.pem"), append(key, cert...), 0o600))
}

func (p *postfix) users(t *testing.T, passwd string, owner *user.User) {
	t.Helper()
	ok(t, os.Mkdir(p.path("sasl"), 0o755))
	conf := "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: " + p.path("sasl/db") + "\n"
	ok(t, os.WriteFile(p.path("sasl/smtpd.conf"), []byte(conf), 0o644))
	cmd := exec.Command(passwd, "-p", "-c", "-f", p.path("sasl/db"), "-u", mailHost, scriptUser)
	cmd.Stdin = strings.NewReader(scriptPass)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("saslpasswd2: %v: %s", err, out)
	}
	p.give(t, "sasl/db", owner)
}

func (p *postfix) configure(t *testing.T, owner *user.User) {
	t.Helper()
	main := fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
daemon_directory = /usr/lib/postfix/sbin
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
myhostname = %[2]s
mynetworks =
inet_protocols = ipv4
alias_maps =
mydestination =
virtual_mailbox_domains = example.org, xn--bcher-kva.example
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:%[3]s
virtual_gid_maps = static:%[4]s
smtpd_tls_chain_files = %[1]s/server.pem
smtpd_tls_security_level = encrypt
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = %[2]s
cyrus_sasl_config_path = %[1]s/sasl
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
smtputf8_enable = yes
`, p.dir, mailHost, owner.Uid, owner.Gid)
	ok(t, os.WriteFile(p.path("main.cf"), []byte(main), 0o644))

	var services strings.Builder
	listen := func(name string, options ...string) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		ok(t, err)
		defer ln.Close() // the port is free again for Postfix
		_, p.ports[name], _ = net.SplitHostPort(ln.Addr().String())
		fmt.Fprintf(&services, "127.0.0.1:%s inet n - n - - smtpd\n  -o %s\n", p.ports[name], strings.Join(options, "\n  -o "))
	}
	for _, name := range mechanisms {
		listen(name, "smtpd_sasl_mechanism_filter="+strings.ToLower(name))
	}
	listen("smtps", "smtpd_tls_wrappermode=yes")
	for _, service := range []string{"cleanup unix n - n - 0 cleanup", "qmgr unix n - n 300 1 qmgr", "rewrite unix - - n - - trivial-rewrite", "bounce unix - - n - 0 bounce",
		"defer unix - - n - 0 bounce", "trace unix - - n - 0 bounce", "virtual unix - n n - - virtual", "error unix - - n - - error", "retry unix - - n - - error",
		"tlsmgr unix - - n 1000? 1 tlsmgr", "proxymap unix - - n - - proxymap", "anvil unix - - n - 1 anvil", "flush unix n - n 1000? 0 flush",
		"postlog unix-dgram n - n - 1 postlogd"} {
		fmt.Fprintln(&services, service)
	}
	ok(t, os.WriteFile(p.path("master.cf"), []byte(services.String()), 0o644))
}

// await waits for a condition that nothing tells of.
func (p *postfix) await(t *testing.T, met func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("Postfix did not do it")
		}
	}
}

// delivered waits for the mail with the Message-ID in the maildir.
func (p *postfix) delivered(t *testing.T, id string) (raw []byte) {
	t.Helper()
	p.await(t, func() bool {
		files, _ := fs.Glob(os.DirFS(p.dir), "mail/box/new/*")
		for _, file := range files {
			b, err := os.ReadFile(p.path(file))
			ok(t, err)
			if bytes.Contains(b, []byte("Message-ID: <"+id+">\n")) {
				raw = b
				return true
			}
		}
		return false
	})
	return raw
}

func (p *postfix) mailer(t *testing.T, scheme, port, password string) *Mailer {
	t.Helper()
	m, err := NewMailer(MailerConfig{URL: scheme + "://" + scriptUser + ":" + password + "@127.0.0.1:" + p.ports[port], From: `"Zoë, of Bücher" <billing@bücher.example>`, TLS: p.ca.Client()})
	ok(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// A mail goes through a real mail server, by each way in, and arrives whole.
func TestThroughPostfix(t *testing.T) {
	t.Parallel()
	p := startPostfix(t)
	const password = "p4ss%20w%25rd"
	ways := map[string]string{"smtps": "smtps"}
	for _, name := range mechanisms {
		ways[name] = "smtp"
	}
	t.Run("ways", func(t *testing.T) {
		for port, scheme := range ways {
			t.Run(port, func(t *testing.T) {
				t.Parallel()
				wrong := p.mailer(t, scheme, port, "wrong")
				if err := wrong.Check(t.Context()); !errors.Is(err, ErrMailServer) || !strings.Contains(err.Error(), "authentication: answered 535 5.7.8") {
					t.Errorf("a wrong password: %v", err)
				}
				m := p.mailer(t, scheme, port, password)
				ok(t, m.Check(t.Context()))
				for i, mail := range hardMails(t) {
					mail.DeliveryID = fmt.Sprintf("%s-%d", port, i)
					ok(t, m.Send(t.Context(), mail))
					checkArrived(t, mail, p.delivered(t, m.MessageID(mail.DeliveryID)))
				}
			})
		}
		t.Run("refused", func(t *testing.T) {
			t.Parallel()
			mail := sample("refused")
			mail.To = "jo@nowhere.invalid"
			m, err := NewMailer(MailerConfig{URL: "smtps://127.0.0.1:" + p.ports["smtps"], From: "billing@example.com", TLS: p.ca.Client()}) // without a user
			ok(t, err)
			defer m.Close()
			checkMailError(t, m.Send(t.Context(), mail), &MailError{Code: 454, EnhancedStatus: "4.7.1", Temporary: true})
		})
	})
}

// hardMails are what breaks mailers.
func hardMails(t *testing.T) []Mail {
	t.Helper()
	long := strings.Repeat("x", 3000)
	evil := "a\r\nBcc: x@example.org\r\n\r\n{{.Token}} <script>alert(1)</script> ${x} %s \x00 \xff"
	mails := []Mail{
		{To: "jo@example.org", Subject: "Ihre Zahlung über 49,00 € ist fehlgeschlagen – bitte prüfen Sie, 山田様", Text: "Guten Tag, Zoë Müller 山田太郎\n",
			HTML: "<p>Guten Tag, Zoë Müller 山田太郎 🎉</p>", ListUnsubscribe: "https://pay.example.com/u/abc"},
		{To: "jö@bücher.example", Subject: "long lines", Text: long + "\n" + strings.Repeat("ä", 3000) + "\n", HTML: "<p>" + long + "</p>"},
		{To: `"jo smith"@example.org`, Subject: "dots", Text: ".\n..\n.dot\n\n.\nQUIT\n", HTML: ".\r\n.\r\n<p>.</p>\r\n.", ListUnsubscribe: "mailto:leave@example.com"},
		{To: "jo@example.org", Subject: evil, Text: evil, HTML: evil},
	}
	templates, err := LoadTemplates(TemplatesConfig{Brand: "Bücher & Söhne"})
	ok(t, err)
	made, err := templates.Render("payment_failed", "de", MailLink{URL: "https://pay.example.com/l/x", ExpiresAt: time.Date(2026, 12, 24, 0, 0, 0, 0, time.UTC)},
		map[string]any{"name": "Zoë " + evil, "amount": evil, "subject": evil})
	ok(t, err)
	mails = append(mails, Mail{To: "jo@example.org", Subject: made.Subject, Text: made.Text, HTML: made.HTML})
	for i := range mails {
		mails[i].Date = time.Date(2026, 11, 3, 10, 0, i, 0, time.UTC)
	}
	return mails
}

// checkArrived compares a mail as it was put in with what two other parsers read: go-message and Python's.
func checkArrived(t *testing.T, mail Mail, raw []byte) {
	t.Helper()
	raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n")) // maildirs have Unix's line ends
	got := parseMail(t, raw)
	want := fields(got.header.Text)
	if s := want("Subject"); s != headerLine(mail.Subject) {
		t.Errorf("subject %q", s)
	}
	if want("From") != "Zoë, of Bücher <billing@xn--bcher-kva.example>" || want("Date") != mail.Date.Format(time.RFC1123Z) || want("Bcc") != "" || want("Cc") != "" {
		t.Errorf("header %q", got.names)
	}
	if u := want("List-Unsubscribe"); mail.ListUnsubscribe != "" && u != "<"+mail.ListUnsubscribe+">" {
		t.Errorf("List-Unsubscribe %q", u)
	}
	checkBodies(t, mail, got.text, got.html)
	python, err := exec.LookPath("python3")
	if err != nil {
		return
	}
	cmd := exec.Command(python, "-c", `
import email, email.policy, json, sys
m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.SMTP)
t, h = m.get_body(("plain",)), m.get_body(("html",))
json.dump({"subject": m["Subject"], "from": m["From"].addresses[0].display_name, "to": m["To"].addresses[0].addr_spec, "parts": len(list(m.walk())),
	"text": t.get_content(), "html": h.get_content(), "defects": [str(d) for p in m.walk() for d in p.defects]}, sys.stdout)`)
	cmd.Stdin = bytes.NewReader(raw)
	out, err := cmd.Output()
	ok(t, err)
	var other struct {
		Subject, From, To, Text, HTML string
		Parts                         int
		Defects                       []string
	}
	ok(t, json.Unmarshal(out, &other))
	if other.Subject != headerLine(mail.Subject) || other.From != "Zoë, of Bücher" || other.Parts != 3 || len(other.Defects) > 0 {
		t.Errorf("Python reads %.500s", out)
	}
	checkBodies(t, mail, other.Text, other.HTML)
}

func fields(text func(string) (string, error)) func(string) string {
	return func(name string) string {
		value, _ := text(name)
		return value
	}
}

func checkBodies(t *testing.T, mail Mail, text, html string) {
	t.Helper()
	same := func(s string) string {
		return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\r\n", "\n")
	}
	if strings.TrimRight(same(text), "\n") != strings.TrimRight(same(mail.Text), "\n") {
		t.Errorf("text %.300q, put in %.300q", text, mail.Text)
	}
	if strings.TrimRight(same(html), "\n") != strings.TrimRight(same(mail.HTML), "\n") {
		t.Errorf("HTML %.300q, put in %.300q", html, mail.HTML)
	}
}
