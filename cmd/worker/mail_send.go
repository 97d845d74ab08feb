package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/locale"
	"latchkey/internal/notify"
)

// sendTestTime bounds 'worker mail send-test'; mail servers may take a minute to scan a mail.
const sendTestTime = 2 * time.Minute

// sendTest is what 'worker mail send-test' is asked for.
type sendTest struct {
	to, template, locale string
}

func newMailSendTestCommand() *cobra.Command {
	var s sendTest
	cmd := &cobra.Command{
		Use:   "send-test",
		Short: "Send one mail through SMTP_URL",
		Long: `Renders a template with sample data and sends it, marked as a test, by the way that all mails go.
Its button leads to LINK_BASE_URL/?sample, which is no link of a customer. Reads SMTP_URL,
MAIL_FROM, LINK_BASE_URL and what 'worker mail preview' reads; no other server is needed.`,
		Example: "  worker mail send-test --to you@example.com --template payment_failed --locale de",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	cmd.Flags().StringVar(&s.to, "to", "", "the address to send to (required)")
	cmd.Flags().StringVar(&s.template, "template", notify.DefaultTemplate, "the template's name")
	cmd.Flags().StringVar(&s.locale, "locale", "en", "one of Stripe's locales, such as pt-BR")
	return cmd
}

func (s *sendTest) run(cmd *cobra.Command) error {
	switch {
	case s.to == "":
		return cli.Usagef("name the address to send to by --to")
	case !slices.Contains(locale.All(), s.locale):
		return cli.Usagef("--locale must be one of %s", strings.Join(locale.All(), ", "))
	}
	mailer, base, err := loadMailWay()
	if err != nil {
		return err
	}
	defer mailer.Close()
	look, err := loadMailLook()
	if err != nil {
		return err
	}
	templates, err := notify.LoadTemplates(look)
	if err != nil {
		return err
	}
	if !templates.Has(s.template) {
		return cli.Usagef("there is no template %q; there are %s", s.template, strings.Join(templates.Names(), ", "))
	}
	now := time.Now()
	content, err := templates.Render(s.template, s.locale, notify.MailLink{URL: base + "/?sample", ExpiresAt: now.Add(14 * 24 * time.Hour)},
		map[string]any{"name": "Jo Sample", "amount": "€ 49.00", "card": "Visa •••• 4242", "plan": "Basic"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), sendTestTime)
	defer cancel()
	if err := mailer.Check(ctx); err != nil { // Send would wait for a server that can't be used
		return err
	}
	id := "test-" + uuid.NewString()
	if err := mailer.Send(ctx, notify.Mail{DeliveryID: id, To: s.to, Date: now, Subject: "[Test] " + content.Subject, Text: content.Text, HTML: content.HTML}); err != nil {
		return err
	}
	cmd.Printf("taken by %s, Message-ID <%s>\n", mailer.Server(), mailer.MessageID(id))
	return nil
}

// loadMailWay reads the settings by which mails go out, without those of a service.
func loadMailWay() (mailer *notify.Mailer, linkBase string, err error) {
	way := &struct {
		SMTPURL     string `envconfig:"SMTP_URL" secret:"true"`
		MailFrom    string `envconfig:"MAIL_FROM"`
		LinkBaseURL string `envconfig:"LINK_BASE_URL"`
	}{}
	problems := config.Load(way)
	if way.LinkBaseURL == "" {
		problems.Add("LINK_BASE_URL", "is required: the public origin of the click server, https://…")
	} else {
		checkOrigin(&problems, "LINK_BASE_URL", way.LinkBaseURL)
	}
	if mailer, err = notify.NewMailer(notify.MailerConfig{URL: way.SMTPURL, From: way.MailFrom}); err != nil {
		name, text, _ := strings.Cut(err.Error(), ": ")
		problems.Add(name, "%s", text)
	}
	if len(problems) > 0 {
		return nil, "", problems
	}
	return mailer, strings.TrimRight(way.LinkBaseURL, "/"), nil
}

// email is the check of the way mails go out.
func (c *checkup) email(ctx context.Context, cfg *Config) {
	if cfg.SMTPURL == "" {
		c.off(ctx, "email", "SMTP_URL")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	mailer, err := notify.NewMailer(notify.MailerConfig{URL: cfg.SMTPURL, From: cfg.MailFrom})
	if err != nil {
		c.line("email", err, "")
		return
	}
	defer mailer.Close()
	c.line("email", mailer.Check(ctx), fmt.Sprintf("%s, MAIL_FROM may send", mailer.Server()))
}
