#!/usr/bin/perl
# A shop of one script, which does what its PATH_INFO says.
use strict;
use warnings;
use CGI;

my $q    = CGI->new;
my $path = $ENV{PATH_INFO} // '';
if ($path eq '/moved') {
    print $q->redirect( -uri => 'http://shop.example/cgi-bin/shop.cgi', -status => 303 );
} elsif ($path eq '/gone') {
    print $q->header( -type => 'text/plain', -status => '410 Gone' ), "sold out\n";
} elsif ($path eq '/upload') {
    my $handle = $q->upload('f') or die 'no file';
    read $handle, my $content, 1 << 24;
    print $q->header('text/plain'), $q->param('f'), ' ', length $content, "\n";
} elsif ($path eq '/fails') {
    print $q->header('text/plain'), "half\n";
    exit 1;
} else {
    my $visit = 1 + ( $q->cookie('visit') // 0 );
    print $q->header( -type => 'text/plain', -cookie => "visit=$visit; path=/" );
    print "visit $visit\n", map { "$_=" . ( $ENV{$_} // '' ) . "\n" }
      qw(REQUEST_METHOD REQUEST_URI QUERY_STRING SCRIPT_NAME PATH_INFO SERVER_NAME HTTP_AUTHORIZATION CONTENT_TYPE CONTENT_LENGTH);
    print map { "$_: " . $q->param($_) . "\n" } sort $q->param;
}
