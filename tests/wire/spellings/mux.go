// Go's own mux, which matches decoded paths.
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	took := func(what string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				fmt.Fprint(w, "took "+what)
			}
		}
	}
	http.HandleFunc("/webhooks/stripe", took("stripe"))
	http.HandleFunc("/actions/", took("action"))
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], nil); err != nil {
		panic(err)
	}
}
