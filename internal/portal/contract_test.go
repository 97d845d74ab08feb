package portal

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"latchkey/internal/contract"
)

func TestSchemasHaveTheKinds(t *testing.T) {
	t.Parallel()
	all := contract.Constants(t, "internal/portal", "Kind")
	if got := contract.Enum(t, contract.Schema(t, "service.schema.json#/$defs/happening"), "kind"); !slices.Equal(got, all) {
		t.Errorf("kinds of a timeline %v, want %v", got, all)
	}
	var types []string
	for _, kind := range all {
		if Kind(kind).published() {
			types = append(types, "latchkey."+kind)
			one := contract.Schema(t, "event.schema.json#/$defs/"+kind)
			if got := contract.Enum(t, one, "type"); !slices.Equal(got, []string{"latchkey." + kind}) {
				t.Errorf("the schema of %s has the type %v", kind, got)
			}
		}
	}
	if got := contract.Enum(t, contract.Schema(t, "event.schema.json"), "type"); !slices.Equal(got, types) {
		t.Errorf("types of events %v, want %v", got, types)
	}
}

func TestSchemasHaveTheStatesAndCodes(t *testing.T) {
	t.Parallel()
	states := contract.Constants(t, "internal/portal", "State")
	for ref, name := range map[string]string{"service.schema.json#/$defs/link": "state", "event.schema.json#/$defs/link_opened_data": "state"} {
		if got := contract.Enum(t, contract.Schema(t, ref), name); !slices.Equal(got, states) {
			t.Errorf("%s: states %v, want %v", ref, got, states)
		}
	}
	codes := contract.Constants(t, "internal/portal", "SessionCode")
	codes = slices.DeleteFunc(codes, func(c string) bool { return c == string(CodeConflict) }) // it is in no row
	if got := contract.Enum(t, contract.Schema(t, "event.schema.json#/$defs/session_failed_data"), "code"); !slices.Equal(got, codes) {
		t.Errorf("codes of session.failed %v, want %v", got, codes)
	}
	locales := slices.Sorted(slices.Values(Locales))
	if got := contract.Enum(t, contract.Schema(t, "request.schema.json#/$defs/session"), "locale"); !slices.Equal(got, locales) {
		t.Errorf("locales %v, want %v", got, locales)
	}
}

// sessionSchema is compiled once: the tables of session_check_test.go are long.
var sessionSchema struct {
	once   sync.Once
	schema *jsonschema.Schema
}

// checkAgreement holds the schema's answer on a session against Check's.
func checkAgreement(t *testing.T, session string, err error) {
	t.Helper()
	sessionSchema.once.Do(func() { sessionSchema.schema = contract.Schema(t, "request.schema.json#/$defs/session") })
	invalid := contract.Validate(sessionSchema.schema, []byte(session))
	var breach *FieldError
	switch {
	case errors.As(err, &breach) && (strings.Contains(breach.Rule, "RETURN_URL_HOSTS") || strings.Contains(breach.Rule, "STRIPE_API_VERSION")):
		// the deployment's rules are in no schema
	case (err == nil) != (invalid == nil):
		t.Errorf("%.200s: Check says %v, the schema %v", session, err, invalid)
	}
}
