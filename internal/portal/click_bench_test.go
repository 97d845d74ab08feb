package portal

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// BenchmarkClick is the handler with its database, 64 people at a time, without HTTP's own cost.
func BenchmarkClick(b *testing.B) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		b.Run(method, func(b *testing.B) {
			s := setup(b)
			paths := make([]string, 1000)
			for i := range paths {
				paths[i] = "/l/" + s.token(s.link(nil))
			}
			var n atomic.Int64
			b.SetParallelism(32)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					w := httptest.NewRecorder()
					s.click.ServeHTTP(w, httptest.NewRequest(method, paths[int(n.Add(1))%len(paths)], nil))
					if w.Code != http.StatusOK && w.Code != http.StatusSeeOther && w.Code != http.StatusTooManyRequests {
						b.Errorf("%d", w.Code)
					}
				}
			})
		})
	}
}
