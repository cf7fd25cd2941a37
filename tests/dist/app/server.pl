# Answers each request with its method and path, and counts the requests with a body in $HOME. Only what
# Debian's perl-base has, which every installation of Debian has.
use strict;
use warnings;
use IO::Socket::INET;

my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ENV{PORT}, Listen => 16, ReuseAddr => 1)
  or die "cannot listen on 127.0.0.1:$ENV{PORT}: $!\n";
while (my $client = $server->accept) {
    my ($head, $length) = ('', 0);
    while (defined(my $line = <$client>)) {
        last if $line =~ /^\r?\n$/;
        $length = $1 if $line =~ /^content-length:\s*(\d+)/i;
        $head ||= $line;
    }
    my $body = '';
    read $client, $body, $length if $length;
    my ($method, $path) = $head =~ /^(\S+) (\S+)/ or next;
    my $said = "$method $path";
    if ($length) {
        my $file = "$ENV{HOME}/count";
        my $n = 0;
        if (open my $in, '<', $file) { $n = <$in>; close $in; }
        $n++;
        open my $out, '>', $file or die "$file: $!\n";
        print $out $n;
        close $out;
        $said .= " $n";
    }
    printf $client "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", length $said, $said;
    close $client;
}
