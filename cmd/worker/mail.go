package main

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/locale"
	"latchkey/internal/notify"
)

func newMailCommand() *cobra.Command {
	mail := &cobra.Command{Use: "mail", Short: "Look at mails and try their way out", Example: "  worker mail preview payment_failed --locale de"}
	mail.AddCommand(newMailPreviewCommand(), newMailSendTestCommand())
	return mail
}

// preview is what 'worker mail preview' is asked for.
type preview struct {
	locale, data, out string
	all               bool
}

func newMailPreviewCommand() *cobra.Command {
	var p preview
	cmd := &cobra.Command{
		Use:   "preview TEMPLATE",
		Short: "Render a mail to a file",
		Long: `Writes a mail's HTML to a file and its text to one beside it that ends in .txt, and prints the
subject. With --all, every template in every locale goes into a folder, with an index.html that
shows them. BRAND_NAME, BRAND_COLOR, BRAND_LOGO_URL, SUPPORT_URL and TEMPLATE_DIR are read from the
environment; no server is needed. The link in it leads nowhere.`,
		Example: `  worker mail preview payment_failed --locale de --data '{"name":"Jo","amount":"49,00 €"}'
  worker mail preview --all --out mails && open mails/index.html`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd, strings.Join(args, "")) },
	}
	cmd.Flags().StringVar(&p.locale, "locale", "en", "one of Stripe's locales, such as pt-BR")
	cmd.Flags().StringVar(&p.data, "data", "{}", "the request's data, a JSON object")
	cmd.Flags().StringVar(&p.out, "out", "", "the HTML's file, or with --all the folder (default TEMPLATE-LOCALE.html, or mails)")
	cmd.Flags().BoolVar(&p.all, "all", false, "every template in every locale")
	return cmd
}

func (p *preview) run(cmd *cobra.Command, name string) error {
	var data map[string]any
	decoder := json.NewDecoder(strings.NewReader(p.data))
	decoder.UseNumber()
	if err := decoder.Decode(&data); err != nil || data == nil || decoder.Decode(new(any)) != io.EOF {
		return cli.Usagef(`--data must be a JSON object, such as {"name":"Jo"}`)
	}
	switch {
	case p.all && (name != "" || cmd.Flags().Changed("locale")):
		return cli.Usagef("--all renders every template in every locale; leave TEMPLATE and --locale out")
	case !p.all && name == "":
		return cli.Usagef("name a template, such as payment_failed, or use --all")
	case p.out != "" && textFile(p.out) == p.out:
		return cli.Usagef("--out is the HTML's file; the text's, which ends in .txt, is put beside it")
	case !slices.Contains(locale.All(), p.locale):
		return cli.Usagef("--locale must be one of %s", strings.Join(locale.All(), ", "))
	}
	cfg, err := loadMailLook()
	if err != nil {
		return err
	}
	templates, err := notify.LoadTemplates(cfg)
	if err != nil {
		return err
	}
	if p.all {
		return p.writeAll(cmd, templates, data)
	}
	if !templates.Has(name) {
		return cli.Usagef("there is no template %q; there are %s", name, strings.Join(templates.Names(), ", "))
	}
	file := cmp.Or(p.out, name+"-"+p.locale+".html")
	mail, err := writeMail(templates, name, p.locale, data, file)
	if err != nil {
		return err
	}
	cmd.Println(mail.Subject)
	cmd.PrintErrf("wrote %s and %s\n", file, textFile(file))
	return nil
}

// loadMailLook reads the settings that mails show, without those of a service.
func loadMailLook() (notify.TemplatesConfig, error) {
	look := &struct {
		BrandName    string `envconfig:"BRAND_NAME"`
		BrandLogoURL string `envconfig:"BRAND_LOGO_URL"`
		BrandColor   string `envconfig:"BRAND_COLOR"`
		SupportURL   string `envconfig:"SUPPORT_URL"`
		TemplateDir  string `envconfig:"TEMPLATE_DIR"`
	}{}
	problems := config.Load(look)
	c := &Config{BrandName: look.BrandName, BrandLogoURL: look.BrandLogoURL, BrandColor: look.BrandColor, SupportURL: look.SupportURL, TemplateDir: look.TemplateDir}
	c.validatePages(&problems)
	if len(problems) > 0 {
		return notify.TemplatesConfig{}, problems
	}
	return c.mailLook(), nil
}

// mailLook is what the deployment's mails look like.
func (c *Config) mailLook() notify.TemplatesConfig {
	return notify.TemplatesConfig{Dir: c.TemplateDir, Brand: c.BrandName, LogoURL: c.BrandLogoURL, Color: c.BrandColor, SupportURL: c.SupportURL}
}

// previewLink is as long as a link is.
const previewLink = "https://pay.example.com/l/AQ-PREVIEW-leads-nowhere-PREVIEW-leads-nowhere-PREV"

func writeMail(templates *notify.Templates, name, tag string, data map[string]any, file string) (notify.MailContent, error) {
	mail, err := templates.Render(name, tag, notify.MailLink{URL: previewLink, ExpiresAt: time.Now().Add(14 * 24 * time.Hour)}, data)
	if err != nil {
		return mail, err
	}
	return mail, errors.Join(write(file, mail.HTML), write(textFile(file), mail.Text))
}

func write(file, content string) error {
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		return fmt.Errorf("the preview can't be written; choose another place by --out: %w", err)
	}
	return nil
}

// textFile is beside the HTML's.
func textFile(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + ".txt" }

//go:embed mail_index.html
var mailIndexHTML string

var mailIndex = template.Must(template.New("index").Parse(mailIndexHTML))

// previewed is a mail of the index.
type previewed struct{ Locale, Subject, HTML, Text string }

func (p *preview) writeAll(cmd *cobra.Command, templates *notify.Templates, data map[string]any) error {
	dir := cmp.Or(p.out, "mails")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("the folder of previews can't be made; choose another place by --out: %w", err)
	}
	all := map[string][]previewed{}
	for _, name := range templates.Names() {
		for _, tag := range locale.All() {
			file := name + "-" + tag + ".html"
			mail, err := writeMail(templates, name, tag, data, filepath.Join(dir, file))
			if err != nil {
				return err
			}
			all[name] = append(all[name], previewed{tag, mail.Subject, file, textFile(file)})
		}
	}
	var index strings.Builder
	if err := mailIndex.Execute(&index, all); err != nil {
		return err
	}
	file := filepath.Join(dir, "index.html")
	if err := write(file, index.String()); err != nil {
		return err
	}
	cmd.Println(file)
	return nil
}
