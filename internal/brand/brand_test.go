package brand

import "testing"

func TestParseColor(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{"#39c": "#3399cc", "#3D3bC9": "#3d3bc9", "#000": "#000000",
		"": "", "39c": "", "#": "", "#39": "", "#39cc": "", "#3d3bc9ff": "", "#ggg": "", "#+12345": "", "#-12": "", "#1_2": "", "red": "", "#39c;}": ""} {
		got, err := ParseColor(s)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
}
