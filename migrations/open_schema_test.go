package migrations

import (
	"errors"
	"testing"
)

// Where everybody may create objects in the schema, as in public up to Postgres 14, the worker's
// role must not get its own function called with the owner's rights; and Up closes the schema.
func TestAFunctionOfTheWorkerIsNotCalledByUp(t *testing.T) {
	t.Parallel()
	pool, url := setup(t)
	up(t, pool)
	for _, sql := range []string{
		`GRANT CREATE ON SCHEMA public TO PUBLIC`,
		`CREATE TABLE called (by text)`,
		`GRANT INSERT ON called TO PUBLIC`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	app := open(t, url, asApp)
	for _, signature := range []string{"format(text, name)", "format(text, text)", "pg_has_role(name, text, text)", "to_regclass(name)", "current_setting(name)"} {
		name, args, _ := cutSignature(signature)
		if _, err := app.Exec(t.Context(), `CREATE FUNCTION public.`+name+args+` RETURNS text LANGUAGE sql AS
			$$INSERT INTO public.called VALUES (current_user); SELECT 'x'$$`); err != nil {
			t.Fatal(err)
		}
	}
	if err := CheckRights(t.Context(), app); !errors.Is(err, ErrOpenSchema) {
		t.Errorf("CheckRights of an open schema: %v", err)
	}
	up(t, pool)
	var calls int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM called`).Scan(&calls); err != nil || calls != 0 {
		t.Errorf("Up called the worker's functions %d times (%v)", calls, err)
	}
	if err := CheckRights(t.Context(), app); err != nil {
		t.Errorf("CheckRights after Up: %v", err)
	}
}

func cutSignature(s string) (name, args string, ok bool) {
	for i := range s {
		if s[i] == '(' {
			return s[:i], s[i:], true
		}
	}
	return s, "()", false
}
