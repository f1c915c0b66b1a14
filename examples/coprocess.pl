#!/usr/bin/perl
# A co-process for patou in Perl, with core modules only: see patou-coprocess(7). In the configuration of the pool:
#
#     handler = { coprocess = ["perl", "/path/to/coprocess.pl"] }
#     ping = "5s"
use strict;
use warnings;
use IO::Handle;

open my $requests, '<&=', 3 or die "descriptor 3: $!";
open my $responses, '>&=', 4 or die "descriptor 4: $!";
binmode $_ for $requests, $responses;

# The fields of the next frame, with names in lower case, and its body; nothing when there are no more.
sub read_frame {
    my %head;
    while (defined(my $line = <$requests>)) {
        $line =~ s/\r?\n\z//;
        if ($line eq '') {
            my $body = '';
            my $length = $head{'content-length'};
            read($requests, $body, $length) == $length or die 'a frame was cut';
            return (\%head, $body);
        }
        my ($name, $value) = split /:[ ]?/, $line, 2;
        $head{ lc $name } = $value;
    }
    return;
}

# The response to one request: status, headers, body.
sub respond {
    my ($head, $body) = @_;
    my $agent = $head->{'http-user-agent'} // 'unknown';
    my $text = sprintf "%s %s from %s: %d bytes\n", $head->{method}, $head->{target}, $agent, length $body;
    return (200, { 'Content-Type' => 'text/plain' }, $text);
}

while (my ($head, $body) = read_frame()) {
    if ($head->{ping}) {
        print $responses "Ping: 1\r\n\r\n";
    } else {
        my ($status, $headers, $content) = respond($head, $body);
        my %fields = (Status => $status, %$headers, 'Content-Length' => length $content);
        print $responses map({ "$_: $fields{$_}\r\n" } sort keys %fields), "\r\n", $content;
    }
    $responses->flush or exit 1;
}
