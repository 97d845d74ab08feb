package bulk

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// header is a CSV's first line, compiled: how a row's cells make a request.
type header struct {
	defaults Defaults
	body     *node  // of all but id, source and campaign
	verbatim []bool // columns whose cells keep their white space

	// Columns; -1 = there is none.
	id, source, campaign, account, customer, customerAccount, flow, sub int
}

// A HeaderError says what is wrong with the columns.
type HeaderError struct{ Text string }

func (e *HeaderError) Error() string { return e.Text }

func headerErrorf(format string, args ...any) error {
	return &HeaderError{fmt.Sprintf(format, args...)}
}

// compileHeader reads the names of columns. Those of fields are taken in any case and with white space around.
func compileHeader(columns []string, defaults Defaults) (*header, error) {
	h := &header{defaults: defaults, body: newNode(""), verbatim: make([]bool, len(columns)),
		id: -1, source: -1, campaign: -1, account: -1, customer: -1, customerAccount: -1, flow: -1, sub: -1}
	var unknown []string
	given := map[string]int{} // column by canonical name
	for i, name := range columns {
		name = strings.TrimSpace(name)
		canonical, err := h.column(i, name)
		switch {
		case errors.Is(err, errUnknown) && defaults.IgnoreUnknown:
			continue
		case errors.Is(err, errUnknown):
			if len(unknown) < mostNamed {
				name = describe(i, name)
			}
			unknown = append(unknown, name)
			continue
		case err != nil:
			return nil, headerErrorf("column %d, %q: %v", i+1, name, err)
		}
		if first, twice := given[canonical]; twice {
			return nil, headerErrorf("columns %d and %d both give %s; leave one out", first+1, i+1, canonical)
		}
		given[canonical] = i
	}
	if len(unknown) > 0 {
		if more := len(unknown) - mostNamed; more > 0 {
			unknown = append(unknown[:mostNamed], fmt.Sprintf("and %d more", more))
		}
		return nil, headerErrorf("the first line must name each column by a field of the request, and these are none: %s; rename them, or make one a "+
			"metadata.… column, which comes back in every event, or let --ignore-unknown carry them to the output alone", strings.Join(unknown, ", "))
	}
	return h, h.settle(given)
}

// mostNamed bounds an error about columns.
const mostNamed = 5

func describe(column int, name string) string {
	if name == "" {
		return fmt.Sprintf("column %d (it has no name)", column+1)
	}
	if len(name) > 64 {
		return fmt.Sprintf("column %d, %.40q…", column+1, name)
	}
	if meant := suggest(name); meant != "" {
		return fmt.Sprintf("%q (did you mean %s?)", name, meant)
	}
	return fmt.Sprintf("%q", name)
}

var (
	errUnknown = errors.New("is no field")
	errOutput  = errors.New("is a column that the output adds, so this may be an earlier output: take the original file, or rename the column")
)

// column puts a column in its place, and returns its field's full name.
func (h *header) column(i int, name string) (string, error) {
	lower := strings.ToLower(name)
	switch lower {
	case "link_url", "link_id", "error":
		return "", errOutput
	case "id":
		h.id = i
		return lower, nil
	case "source":
		h.source = i
		return lower, nil
	case "campaign":
		h.campaign = i
		return lower, nil
	case "customer", "session.customer":
		h.customer = i
		return "session.customer", nil
	case "subscription":
		return shortNames[lower], h.subscription(i)
	}
	if full, short := shortNames[lower]; short {
		return h.shortColumn(i, full, false)
	}
	if prefix, key, ok := strings.Cut(name, "."); ok && strings.EqualFold(prefix, "data") {
		return h.shortColumn(i, "deliver.0.data."+key, true)
	}
	for _, path := range []string{name, lower, "session." + lower} {
		if prefix, key, ok := strings.Cut(path, "."); ok && strings.EqualFold(prefix, "metadata") {
			path = "metadata." + key
		}
		if segments, kind, ok := field(path); ok {
			full := strings.Join(segments, ".")
			h.remember(i, full)
			return full, h.put(i, segments, kind, segments[0] == "metadata" && len(segments) > 1)
		}
	}
	return "", errUnknown
}

// shortColumn puts a column of a short name. That of a delivery is set apart from columns that spell deliver out.
func (h *header) shortColumn(i int, full string, verbatim bool) (string, error) {
	segments, kind, ok := field(full)
	if !ok {
		return "", errUnknown
	}
	if rest, ok := strings.CutPrefix(full, "deliver."); ok {
		full = "mail." + rest
	} else {
		h.remember(i, full)
	}
	return full, h.put(i, segments, kind, verbatim)
}

// remember notes columns that others depend on.
func (h *header) remember(i int, full string) {
	switch full {
	case "stripe_account":
		h.account = i
	case "session.customer_account":
		h.customerAccount = i
	case "session.flow_data.type":
		h.flow = i
	}
}

var errTwice = errors.New("gives a field that another column gives too")

func (h *header) put(i int, path []string, k kind, verbatim bool) error {
	n := h.body.at(path)
	if n.cell >= 0 {
		return errTwice
	}
	n.cell, n.kind, h.verbatim[i] = i, k, verbatim
	return nil
}

// subscription puts a cell into the sub-object of the row's flow.
func (h *header) subscription(i int) error {
	h.sub = i
	for _, flow := range subscriptionFlows {
		n := h.body.at([]string{"session", "flow_data", flow, "subscription"})
		if n.cell >= 0 {
			return errTwice
		}
		n.cell, n.fits = i, func(cells []string) bool { return h.flow >= 0 && cells[h.flow] == flow }
	}
	return nil
}

var subscriptionFlows = []string{"subscription_cancel", "subscription_update", "subscription_update_confirm"}

// settle checks what columns need of each other.
func (h *header) settle(given map[string]int) error {
	has := func(name string) bool { _, ok := given[name]; return ok }
	switch {
	case h.customer < 0 && h.customerAccount < 0 && !has("session"):
		return headerErrorf("no column names the customer; the first line must have a column customer (cus_…)")
	case h.id < 0 && h.campaign < 0 && h.defaults.Campaign == "":
		return headerErrorf("there is neither an id for each row nor a campaign to make one of; say --campaign NAME (and the same one when you run it again)")
	case h.id < 0 && h.customer < 0 && h.customerAccount < 0:
		return headerErrorf("an id can be made only of a column customer; add that, or a column id")
	case has(shortNames["subscription"]) && h.flow < 0:
		return headerErrorf("the column subscription needs a column flow, such as subscription_cancel")
	}
	if err := h.mail(given); err != nil {
		return err
	}
	if h.customer >= 0 {
		h.putCustomer()
	}
	if err := h.body.settle(false); err != nil {
		return headerErrorf("a column whose cells hold JSON %v; take one of the two", err)
	}
	return nil
}

// mail completes the deliveries of the short columns: a row has a mail where it has an address, a webhook where
// it has a URL.
func (h *header) mail(given map[string]int) error {
	short, long := "", ""
	for name := range given {
		if strings.HasPrefix(name, "mail.") {
			short = name
		}
		if name == "deliver" || strings.HasPrefix(name, "deliver.") {
			long = name
		}
	}
	email, hasEmail := given["mail.0.to"]
	webhook, hasWebhook := given["mail.1.url"]
	switch {
	case short != "" && long != "":
		return headerErrorf("the columns email, template, data.… and webhook don't go together with %s; take one form", long)
	case strings.HasPrefix(short, "mail.0.") && !hasEmail:
		return headerErrorf("the columns template, list_unsubscribe and data.… need a column email")
	}
	if hasEmail {
		h.delivery("0", `"email"`, email)
	}
	if hasWebhook {
		h.delivery("1", `"webhook"`, webhook)
	}
	return nil
}

func (h *header) delivery(index, channel string, column int) {
	n := h.body.at([]string{"deliver", index})
	n.needs = column
	n.at([]string{"channel"}).fixed = channel
}

// putCustomer tells customers from accounts that are customers.
func (h *header) putCustomer() {
	session := h.body.at([]string{"session"})
	isAccount := func(cells []string) bool { return strings.HasPrefix(cells[h.customer], "acct_") }
	customer := session.at([]string{"customer"})
	customer.cell = h.customer
	if h.customerAccount >= 0 {
		return // the file tells them apart itself
	}
	customer.fits = func(cells []string) bool { return !isAccount(cells) }
	account := session.at([]string{"customer_account"})
	account.cell, account.fits = h.customer, isAccount
}

// fill makes the request of a row's cells.
func (h *header) fill(row *Row, cells []string) error {
	for i, cell := range cells {
		if !h.verbatim[i] {
			cells[i] = strings.TrimSpace(cell)
		}
	}
	if err := h.fits(cells); err != nil {
		return err
	}
	row.Source = h.or(cells, h.source, h.defaults.Source)
	campaign := h.or(cells, h.campaign, h.defaults.Campaign)
	if row.ID = h.or(cells, h.id, ""); row.ID == "" {
		row.Derived = true
		customer := h.or(cells, h.customer, h.or(cells, h.customerAccount, ""))
		if customer == "" {
			return errors.New("$.session.customer: is required")
		}
		var err error
		if row.ID, err = deriveID(campaign, customer, h.or(cells, h.account, "")); err != nil {
			return err
		}
	}
	return h.write(row, campaign, cells)
}

// fits refuses what would be dropped without a word.
func (h *header) fits(cells []string) error {
	if h.sub >= 0 && cells[h.sub] != "" && !slices.Contains(subscriptionFlows, cells[h.flow]) {
		return fmt.Errorf("a subscription goes with the flows %s only", strings.Join(subscriptionFlows, ", "))
	}
	return nil
}

// or is a cell, or what stands in for an empty one.
func (h *header) or(cells []string, column int, otherwise string) string {
	if column >= 0 && cells[column] != "" {
		return cells[column]
	}
	return otherwise
}

// write spells the request: always in the same way, of the same cells.
func (h *header) write(row *Row, campaign string, cells []string) error {
	body := make([]byte, 0, 512)
	body = append(body, '{')
	for _, member := range [...]struct{ key, value string }{{`"id":`, row.ID}, {`"source":`, row.Source}, {`"campaign":`, campaign}} {
		if member.value == "" {
			continue
		}
		if len(body) > 1 {
			body = append(body, ',')
		}
		body = append(body, member.key...)
		var err error
		if body, err = jsontext.AppendQuote(body, member.value); err != nil {
			return err
		}
	}
	rest := len(body)
	body, there, err := h.body.append(body, cells)
	if err != nil {
		return err
	}
	if !there {
		row.Body = append(body, '}')
		return nil
	}
	body[rest] = ',' // in place of the object's {
	row.Body = body
	return nil
}
