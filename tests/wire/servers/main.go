// Go's net/http. Answers what it saw as JSON, and prints a line for each request it carried out.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

func main() {
	var printing sync.Mutex
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		headers := map[string][]string{"host": {r.Host}}
		for name, values := range r.Header {
			headers[strings.ToLower(name)] = values
		}
		line, _ := json.Marshal(map[string]string{"method": r.Method, "target": r.RequestURI})
		printing.Lock()
		fmt.Println(string(line))
		printing.Unlock()
		if r.URL.Path == "/stream" {
			fmt.Fprint(w, "one,")
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "two")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"server": "go", "method": r.Method, "target": r.RequestURI, "headers": headers,
			"body": hex.EncodeToString(body), "trailers": r.Trailer,
		})
	}
	// Not the mux, which would send other spellings of a path somewhere else before the handler sees them.
	http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(handler))
}
